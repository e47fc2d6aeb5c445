"""Token merging as an axis of the search: which schedules there are, which one is best, and plans that carry one."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from serving.command import UserError
from serving.timing.turns import Timing
from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import merging, plan, scores, search
from trainer.compress.allocate import Rounding
from trainer.compress.latency_table import CostTable, grid
from trainer.compress.plan import Plan, identity, without_layers
from trainer.compress.repair import Repair, cut
from trainer.compress.search import Candidate, Judge, Teacher
from trainer.description import Block, ViT, macs, uniform, without_merging
from trainer.description import merging as with_merging
from trainer.models.build import bind

# 16 patches, 4 blocks: two of them merge.
DEEP = dataclasses.replace(SMALL, image_size=(16, 16), blocks=uniform(4, 1, 8, 16))
ROUNDING = Rounding(mlp=8, head_dim=4, width=16)
MERGING = (0, 0, 3, 2)


@functools.cache
def _teacher(model: ViT = DEEP) -> Teacher:
    return Teacher(model, random_params(model), smooth_images(model, 64), Repair(1e-2, 16))


def _said(model: ViT, params: object) -> np.ndarray:
    return np.asarray(bind(model, params)(_teacher().images))  # type: ignore[arg-type]


def test_schedules_begin_with_none_spare_the_first_two_layers_and_can_all_be_built() -> None:
    found = merging.merge_schedules(DEEP)
    assert found[0] == (0, 0, 0, 0)
    assert all(schedule[:2] == (0, 0) for schedule in found)
    # An eighth to three quarters of 16; two layers cannot merge all of the last 12, half of what is left at a time.
    assert {sum(schedule) for schedule in found} == {0, 2, 4, 8, 11}
    assert all(with_merging(DEEP, schedule).tokens_by_block[-1] >= 4 for schedule in found)


def test_a_total_comes_in_equal_counts_and_in_counts_that_fall() -> None:
    found = merging.merge_schedules(dataclasses.replace(DEEP, blocks=uniform(5, 1, 8, 16)))
    assert (0, 0, 3, 2, 3) in found
    assert (0, 0, 4, 3, 1) in found


def test_no_layer_is_asked_to_merge_what_it_has_not_and_one_without_attention_merges_nothing() -> None:
    headless = dataclasses.replace(DEEP, blocks=(*DEEP.blocks[:3], Block(0, 0, 0, 16)))
    found = merging.merge_schedules(headless)
    assert {schedule[3] for schedule in found} == {0}
    assert max(schedule[2] for schedule in found) == 8  # not 12: half of the patches at most


def test_a_shallow_model_has_no_schedule_but_none() -> None:
    assert merging.merge_schedules(dataclasses.replace(DEEP, blocks=DEEP.blocks[:2])) == [(0, 0)]


@pytest.mark.parametrize(
    ("merge", "side", "offered"),
    [("auto", 36, False), ("auto", 40, True), ("always", 8, True), ("never", 40, False)],
)
def test_merging_is_offered_from_a_hundred_tokens_on_unless_the_configuration_says_otherwise(
    merge: str, side: int, offered: bool
) -> None:
    assert merging.offered(merge, dataclasses.replace(DEEP, image_size=(side, side))) is offered


def test_a_stated_count_is_merged_in_every_layer_from_the_third_on() -> None:
    assert merging.stated(DEEP, 3) == (0, 0, 3, 3)
    with pytest.raises(UserError, match="block 2 merges 9 pairs of its 16 patches; at most 8 can be"):
        merging.stated(DEEP, 9)
    with pytest.raises(UserError, match=r"shape\.merge=3: no layer merges tokens but the third"):
        merging.stated(dataclasses.replace(DEEP, blocks=DEEP.blocks[:2]), 3)


def test_losses_are_the_kl_of_the_merged_model_and_none_without_merging() -> None:
    teacher = _teacher()
    found = merging.losses_of(DEEP, teacher.params, teacher.images, 16, [(0, 0, 0, 0), MERGING])
    wanted, said = (_said(model, teacher.params) for model in (DEEP, with_merging(DEEP, MERGING)))
    assert found[(0, 0, 0, 0)] == 0
    assert found[MERGING] == pytest.approx(search.divergence(wanted, said), rel=1e-3)
    assert found[MERGING] > 1e-5  # float32 noise of equal logits is below 1e-9


def test_a_plan_carries_its_schedule_through_json_and_loses_with_a_layer_what_that_merged() -> None:
    merged = merging.merged_plan(identity(DEEP), MERGING)
    assert [block.merge for block in merged.shape_of(DEEP).blocks] == [0, 0, 3, 2]
    assert plan.from_json(json.loads(json.dumps(merged.to_json()))) == merged
    assert [block.merge for block in without_layers(merged, {2}).shape_of(DEEP).blocks] == [0, 0, 2]


def test_a_plan_written_before_there_was_merging_is_read() -> None:
    old = identity(DEEP).to_json()
    del old["merged"]
    assert plan.from_json(old) == identity(DEEP)


def test_a_plan_of_a_teacher_that_merges_keeps_its_schedule_unless_it_has_one() -> None:
    teacher = with_merging(DEEP, MERGING)
    assert identity(teacher).shape_of(teacher) == teacher
    whole = dataclasses.replace(identity(teacher), merged=(0,) * 4)
    assert whole.shape_of(teacher) == DEEP
    headless = [*identity(teacher).layers]
    headless[3] = dataclasses.replace(headless[3], heads=())
    assert Plan(tuple(headless)).shape_of(teacher).blocks[3].merge == 0


def test_merging_alone_leaves_every_weight_as_it_was() -> None:
    teacher = _teacher()
    merged = merging.merged_plan(identity(DEEP), MERGING)
    params, remarks = cut(DEEP, teacher.params, merged, teacher.images, teacher.how)
    assert remarks == []
    np.testing.assert_array_equal(
        _said(merged.shape_of(DEEP), params), _said(with_merging(DEEP, MERGING), teacher.params)
    )


def test_a_cut_is_repaired_alike_whether_teacher_and_plan_merge_or_not() -> None:
    teacher = _teacher()
    layers = [
        dataclasses.replace(layer, neurons=layer.neurons[:8], qk_dim=4) for layer in identity(DEEP).layers
    ]
    whole = Plan(tuple(layers))
    merged = merging.merged_plan(whole, MERGING)
    wanted, _ = cut(DEEP, teacher.params, whole, teacher.images, teacher.how)
    for model, one in ((DEEP, merged), (with_merging(DEEP, MERGING), whole)):
        found, _ = cut(model, teacher.params, one, teacher.images, teacher.how)
        np.testing.assert_array_equal(
            _said(without_merging(one.shape_of(model)), found), _said(whole.shape_of(DEEP), wanted)
        )


def test_a_judge_hears_the_merged_model_and_not_the_one_that_was_repaired() -> None:
    teacher, judge = _teacher(), Judge(_teacher())
    merged = merging.merged_plan(identity(DEEP), MERGING)
    said = np.asarray(bind(merged.shape_of(DEEP), teacher.params)(judge.held_out))
    wanted = np.asarray(bind(DEEP, teacher.params)(judge.held_out))
    assert judge(merged) == pytest.approx(search.divergence(wanted, said), rel=1e-3)


@functools.cache
def _found(budget: int) -> tuple[list[Candidate], list[Candidate]]:
    """Candidates of a search without merging, and of the same with it."""
    teacher, judge = _teacher(), Judge(_teacher())
    ranks = scores.score(DEEP, teacher.params, teacher.images, "fisher", 0, 16)
    table = search.measure_losses(teacher, ranks, judge)

    def within(cost: merging.Cost, budget: int) -> list[Candidate]:
        return search.to_budget(teacher, ranks, table, cost, budget, ROUNDING, judge)

    return within(macs, budget), merging.also_merging(within, teacher, judge)(macs, budget)


def test_merged_candidates_compete_with_the_others_within_the_same_budget() -> None:
    budget = int(0.5 * macs(DEEP))
    plain, found = _found(budget)
    assert all(one in found for one in plain)
    merged = [one for one in found if any(one.plan.merged)]
    assert merged
    for one in found:
        assert one.cost == macs(one.plan.shape_of(DEEP)) <= budget
    losses = [one.divergence for one in found]
    assert losses == sorted(losses)
    assert np.isfinite(losses).all()
    assert all("patches merged" in one.made_by for one in merged)


def test_a_teacher_that_merges_already_is_searched_as_it_is() -> None:
    teacher = dataclasses.replace(_teacher(), model=with_merging(DEEP, MERGING))

    def within(cost: merging.Cost, budget: int) -> list[Candidate]:
        return []

    assert merging.also_merging(within, teacher, Judge(_teacher())) is within


def test_where_merging_saves_nothing_it_is_not_tried() -> None:
    judge = Judge(_teacher())
    plain = [Candidate("width 16", identity(DEEP), 1, 9.0)]
    search_merging = merging.also_merging(lambda cost, budget: list(plain), _teacher(), judge)
    assert search_merging(lambda model: 1, 1) == plain


def test_predicted_latency_falls_with_the_tokens_that_are_merged() -> None:
    def timed(models: object) -> list[Timing]:
        return [Timing(1e-6 * macs(model), 0.0, 0.0, 0.0) for model in models]  # type: ignore[attr-defined]

    cost = CostTable(grid(DEEP, ROUNDING), timed)
    assert cost(DEEP) == pytest.approx(1e-6 * macs(DEEP), rel=1e-6)
    merged = with_merging(DEEP, (0, 0, 8, 4))
    assert cost(merged) == pytest.approx(1e-6 * macs(merged), rel=1e-6)
