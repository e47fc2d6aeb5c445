"""What a budget is spent on: what loses most when it goes stays."""

import dataclasses
from collections.abc import Callable

import pytest

from tests.support.small_models import SMALL, UNEVEN, random_params, smooth_images
from trainer.compress import scores, search, spend
from trainer.compress.allocate import Rounding
from trainer.compress.losses import Curve, Losses
from trainer.compress.repair import Repair
from trainer.compress.scores import Scores
from trainer.compress.search import Judge, Teacher
from trainer.description import ViT, macs, param_count, uniform

DEEP = dataclasses.replace(SMALL, blocks=uniform(3, 2, 8, 32))
ROUNDING = Rounding(mlp=8, head_dim=4, width=4)


def _scores(model: ViT) -> Scores:
    return scores.score(model, random_params(model), smooth_images(model, 64), "fisher", 0, 32)


def _losses(matters: int) -> Losses:
    """Losses of layers that are alike, but for one that matters a hundred times as much."""
    return [
        {
            "heads": Curve((0, 1, 2), (scale, scale / 4, 0.0)),
            "query_key": Curve((4, 8), (scale / 8, 0.0)),
            "value": Curve((4, 8), (scale / 8, 0.0)),
            "mlp": Curve((0, 8, 16, 32), (scale, scale / 4, scale / 16, 0.0)),
        }
        for scale in (100.0 if layer == matters else 1.0 for layer in range(3))
    ]


@pytest.mark.parametrize("matters", range(3))
def test_the_layer_that_matters_most_keeps_most(matters: int) -> None:
    budget = int(0.5 * param_count(DEEP))
    plan = spend.within(DEEP, 16, _scores(DEEP), _losses(matters), param_count, budget, ROUNDING)
    assert plan is not None
    kept = {
        layer.source: param_count(dataclasses.replace(DEEP, blocks=(layer.block,))) for layer in plan.layers
    }
    assert max(kept, key=lambda source: kept[source]) == matters


@pytest.mark.parametrize("cost", [param_count, macs])
@pytest.mark.parametrize("width", [8, 16])
def test_a_plan_is_within_its_budget_near_it_and_falls_with_it(
    width: int, cost: Callable[[ViT], int]
) -> None:
    found, table = _scores(DEEP), _losses(1)
    spent = []
    for fraction in (0.45, 0.4, 0.3, 0.2):
        budget = int(fraction * cost(DEEP))
        plan = spend.within(DEEP, width, found, table, cost, budget, ROUNDING)
        assert plan is not None
        shape = plan.shape_of(DEEP)
        assert shape.width == width
        assert 0.8 * budget <= cost(shape) <= budget  # a step of this small model is a tenth of it
        spent.append(cost(shape))
    assert spent == sorted(spent, reverse=True)


def test_sizes_are_multiples_of_the_rounding_or_whole_and_scores_say_which_units_stay() -> None:
    found = _scores(DEEP)
    plan = spend.within(DEEP, 16, found, _losses(1), param_count, param_count(DEEP) // 3, ROUNDING)
    assert plan is not None
    for layer in plan.layers:
        own = found[str(layer.source)]
        assert layer.qk_dim % 4 == layer.v_dim % 4 == len(layer.neurons) % 8 == 0
        gone = set(range(32)) - set(layer.neurons)
        if gone and layer.neurons:
            assert min(own["mlp"][list(layer.neurons)]) >= max(own["mlp"][list(gone)])


def test_no_plan_is_given_where_embedding_and_head_alone_cost_more() -> None:
    assert spend.within(DEEP, 16, _scores(DEEP), _losses(1), param_count, 100, ROUNDING) is None


def test_a_layer_whose_branches_both_go_is_gone() -> None:
    plan = spend.within(
        DEEP, 16, _scores(DEEP), _losses(1), param_count, int(0.3 * param_count(DEEP)), ROUNDING
    )
    assert plan is not None
    assert len(plan.layers) < 3


def test_branches_that_the_teacher_lacks_stay_away() -> None:
    teacher = Teacher(UNEVEN, random_params(UNEVEN), smooth_images(UNEVEN, 128), Repair(1e-2, 32))
    found = _scores(UNEVEN)
    table = search.measure_losses(teacher, found, Judge(teacher))
    plan = spend.within(UNEVEN, 16, found, table, param_count, int(0.8 * param_count(UNEVEN)), ROUNDING)
    assert plan is not None
    for layer in plan.layers:
        block = UNEVEN.blocks[layer.source]
        assert len(layer.heads) <= block.num_heads
        assert len(layer.neurons) <= block.mlp_dim
