import dataclasses
import functools

import numpy as np
import pytest
import scipy.special

from serving.command import UserError
from tests.support.small_models import SMALL, UNEVEN, cut_evenly, logits, random_params, smooth_images
from trainer.compress import scores, search
from trainer.compress.allocate import Rounding
from trainer.compress.losses import Curve
from trainer.compress.moments import ROWS_PER_DIM, Array
from trainer.compress.plan import identity
from trainer.compress.repair import Repair, cut
from trainer.compress.scores import Scores
from trainer.compress.search import Candidate, Infeasible, Judge, Teacher
from trainer.description import Block, ViT, named, param_count, require_vit, uniform
from trainer.models.build import Params

DEEP = dataclasses.replace(SMALL, blocks=uniform(3, 2, 8, 32))
ROUNDING = Rounding(mlp=16, head_dim=4, width=4)


def _teacher(model: ViT = DEEP, images: int = 256, batch: int = 32, params: Params | None = None) -> Teacher:
    params = random_params(model) if params is None else params
    return Teacher(model, params, smooth_images(model, images), Repair(1e-2, batch))


@functools.cache
def _scores(model: ViT = DEEP) -> Scores:
    teacher = _teacher(model)
    return scores.score(model, teacher.params, teacher.images, "fisher", 0, 64)


@functools.cache
def _found(fraction: float) -> list[Candidate]:
    teacher, budget = _teacher(), int(fraction * param_count(DEEP))
    judge = Judge(teacher)
    table = search.measure_losses(teacher, _scores(), judge)
    return search.to_budget(teacher, _scores(), table, param_count, budget, ROUNDING, judge)


def test_the_divergence_is_the_mean_kl_from_teacher_to_student_in_nats() -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 7, 5))
    p, q = scipy.special.softmax(teacher, -1), scipy.special.softmax(student, -1)
    wanted = np.mean([scipy.special.rel_entr(p[row], q[row]).sum() for row in range(7)])
    assert search.divergence(teacher, student) == pytest.approx(wanted)
    assert search.divergence(teacher, teacher + 3) == pytest.approx(
        0, abs=1e-12
    )  # a shift of all logits says nothing


def test_the_first_candidate_has_the_least_divergence_and_all_are_within_the_budget() -> None:
    candidates = _found(0.6)
    found = [one.divergence for one in candidates]
    assert len(found) >= 2
    assert found == sorted(found)
    assert found[0] < found[-1]
    for one in candidates:
        assert one.cost == param_count(one.plan.shape_of(DEEP)) <= 0.6 * param_count(DEEP)


def test_candidates_are_of_different_widths() -> None:
    widths = [one.plan.shape_of(DEEP).width for one in _found(0.6)]
    assert len(set(widths)) == len(widths)
    assert set(widths) <= {4, 8, 12, 16}


def test_a_search_is_nearer_to_the_teacher_than_cutting_all_layers_alike() -> None:
    teacher, judge = _teacher(), Judge(_teacher())
    budget = int(0.6 * param_count(DEEP))
    alike = search.uniform(teacher, _scores(), param_count, budget, ROUNDING, judge)
    assert [one.made_by for one in alike] == ["uniform"]
    assert alike[0].cost <= budget
    assert _found(0.6)[0].divergence < alike[0].divergence


@pytest.mark.parametrize(
    ("losses", "asked"),
    [
        ([9, 5, 3, 4, 8], {2, 1, 3}),  # both neighbours are worse
        ([1, 2, 3, 4, 5], {2, 1, 0}),  # down to the end, and not up as well
        ([9, 8, 3, 2, 4], {2, 1, 3, 4}),
        ([4, np.inf, np.inf, np.inf, np.inf], {2, 1, 0}),  # nothing fits: the narrower may
    ],
)
def test_a_descent_goes_on_in_either_direction_while_the_loss_does_not_rise(
    losses: list[float], asked: set[int]
) -> None:
    seen, after = list[int](), list[int]()

    def loss(place: int) -> float:
        seen.append(place)
        return losses[place]

    search.descend(len(losses), 2, loss, lambda: after.append(0))
    assert set(seen) == asked
    assert len(seen) == len(after) == len(asked)  # none twice


def test_a_candidates_divergence_is_that_of_cutting_and_judging_on_separate_images() -> None:
    teacher, best = _teacher(), _found(0.6)[0]
    held_out = np.arange(256) // 32 % 4 == 0
    params, _ = cut(DEEP, teacher.params, best.plan, teacher.images[~held_out], teacher.how)
    shape, images = best.plan.shape_of(DEEP), teacher.images[held_out]
    found = search.divergence(logits(DEEP, teacher.params, images), logits(shape, params, images))
    assert best.divergence == pytest.approx(found, rel=1e-3)  # batches of another size: sums in another order


def test_layers_that_do_nothing_are_missed_least() -> None:
    params = random_params(DEEP)
    block = params["blocks"]["1"]
    for layer in (block["attention"]["out"], block["mlp"]["fc2"]):
        layer["kernel"] *= 0
        layer["bias"] *= 0
    teacher = _teacher(params=params)
    judge = Judge(teacher)
    assert search.missed_least(teacher, judge)[0] == 1


def test_the_plan_that_keeps_everything_diverges_by_nothing() -> None:
    assert Judge(_teacher())(identity(DEEP)) == 0


@pytest.mark.parametrize("images", [4, 30, 100])
def test_fewer_images_than_a_batch_are_split_into_those_that_repair_and_those_that_judge(images: int) -> None:
    judge = Judge(_teacher(images=images, batch=128))
    fitted, held_out = judge.fitted, judge.held_out
    assert len(fitted) + len(held_out) == images
    assert len(fitted) >= 2 * len(held_out) > 0


@pytest.mark.parametrize("batch", [16, 64, 500])
@pytest.mark.parametrize("name", ["Ti_16", "B_32", "L_32", "H_14"])
def test_images_that_repair_are_enough_for_the_widest_layer_of_a_published_model(
    name: str, batch: int
) -> None:
    model = require_vit(named(name, (224, 224), channels=3, num_classes=1000), "search")
    count = search.searched(model, batch)
    repairing = np.count_nonzero(~search._judging(count, batch))
    assert repairing * model.num_tokens >= ROWS_PER_DIM * max(block.mlp_dim for block in model.blocks)
    assert repairing >= 2 * (count - repairing)


def test_images_that_are_too_few_for_a_search_are_refused_with_how_many_are_enough() -> None:
    model = dataclasses.replace(SMALL, blocks=uniform(2, 2, 8, 256))
    with pytest.raises(
        UserError, match=r"=20 is too few .*: 256 dimensions .* 4 tokens, .* at least (\d+)"
    ) as refused:
        search.require_images(model, 64, 20)
    enough = int(str(refused.value).rsplit(" ", 1)[1])
    search.require_images(model, 64, enough)
    teacher = _teacher(model, images=enough, batch=64)
    table = search.measure_losses(teacher, _scores(model), Judge(teacher))
    assert len(table) == 3


def test_fewer_images_than_can_be_split_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 calibration images.*at least 4.*calibration\.examples"):
        Judge(_teacher(images=3))


def test_what_only_a_report_tells_is_left_out_where_it_is_not_told_and_the_plan_is_the_same() -> None:
    teacher, judge, budget = _teacher(), Judge(_teacher()), param_count(DEEP) // 2
    whole = search.measure_losses(teacher, _scores(), judge)
    least = search.measure_losses(teacher, _scores(), judge, told=False)
    assert [set(curves) for curves in whole] == [*({*curves, "block"} for curves in least), {"width"}]
    found = [
        search.to_budget(teacher, _scores(), table, param_count, budget, ROUNDING, judge)[0].plan
        for table in (whole, least)
    ]
    assert found[0] == found[1]


def test_a_budget_above_the_teacher_is_refused_with_both_numbers() -> None:
    most = param_count(DEEP)
    with pytest.raises(UserError, match=f"budget {most + 1:,} is above the teacher's {most:,}"):
        search.check_budget(DEEP, param_count, most + 1, ROUNDING)
    search.check_budget(DEEP, param_count, most, ROUNDING)


def test_a_budget_below_one_branch_is_refused_with_both_numbers_and_one_branch_itself_is_met() -> None:
    least = param_count(dataclasses.replace(DEEP, width=4, blocks=uniform(1, 1, 4, 0)))
    with pytest.raises(
        UserError, match=f"budget {least - 1:,} is below the {least:,} that the least cut needs"
    ):
        search.check_budget(DEEP, param_count, least - 1, ROUNDING)
    teacher, judge = _teacher(), Judge(_teacher())
    table = search.measure_losses(teacher, _scores(), judge)
    found = search.to_budget(teacher, _scores(), table, param_count, least, ROUNDING, judge)
    (one,) = found
    shape = one.plan.shape_of(DEEP)
    assert one.cost == param_count(shape) <= least
    assert (shape.width, shape.blocks) == (4, uniform(1, 1, 4, 0))


def test_the_least_budget_of_an_uneven_teacher_is_that_of_its_smallest_branch() -> None:
    alone = [
        (Block(1, 4, 4, 0),),
        (Block(1, 4, 3, 0),),
        (Block(0, 0, 0, 16),),
        (Block(1, 2, 4, 0),),
        (Block(0, 0, 0, 7),),
    ]
    least = min(param_count(dataclasses.replace(UNEVEN, width=4, blocks=blocks)) for blocks in alone)
    with pytest.raises(UserError, match=f"below the {least:,} that the least cut needs"):
        search.check_budget(UNEVEN, param_count, least - 1, ROUNDING)
    search.check_budget(UNEVEN, param_count, least, ROUNDING)


def test_a_budget_that_keeps_nothing_worth_its_cost_is_refused_with_one_that_does() -> None:
    teacher, judge = _teacher(), Judge(_teacher())

    def all_or_nothing(curve: Curve) -> Curve:
        return Curve(curve.sizes, tuple(2.0 if size else 1.0 for size in curve.sizes[:-1]) + (0.0,))

    measured = search.measure_losses(teacher, _scores(), judge)
    table = [{kind: all_or_nothing(curve) for kind, curve in curves.items()} for curves in measured]
    search_for = functools.partial(search.to_budget, teacher, _scores(), table, param_count)
    least = param_count(dataclasses.replace(DEEP, width=4, blocks=uniform(1, 1, 4, 16)))
    with pytest.raises(
        Infeasible, match=r"worth its cost; a cut that does costs [\d,]+: give that"
    ) as refused:
        search_for(least, ROUNDING, judge)
    nearest = param_count(refused.value.least)
    assert f"costs {nearest:,}:" in str(refused.value)
    assert all(candidate.cost <= nearest for candidate in search_for(nearest, ROUNDING, judge))


def test_a_judge_gives_the_same_plan_the_same_divergence_again() -> None:
    judge, plan = Judge(_teacher()), cut_evenly(DEEP, 1, 4, 16)
    first: float = judge(plan)
    assert judge(plan) == first > 0


def test_images_of_the_judge_are_not_those_of_the_repair() -> None:
    judge = Judge(_teacher())

    def rows(images: Array) -> set[bytes]:
        return {image.tobytes() for image in images}

    assert not rows(judge.fitted) & rows(judge.held_out)
