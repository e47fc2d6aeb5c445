import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_models import SMALL, UNEVEN
from trainer.compress import allocate
from trainer.compress.allocate import Rounding
from trainer.compress.gradient_scores import ones
from trainer.compress.plan import Plan, identity, without_layers
from trainer.compress.scores import Scores
from trainer.description import Block, ViT, macs, param_count, uniform

TEACHER = dataclasses.replace(SMALL, blocks=uniform(3, 4, 10, 40))
ROUNDING = Rounding(mlp=8, head_dim=4, width=4)


@functools.cache
def _scores(model: ViT = TEACHER) -> Scores:
    """Random scores, later dims less than earlier ones, as ordering leaves them."""
    rng = np.random.default_rng(0)
    found: Scores = {}
    for index, block in enumerate(model.blocks):
        own = {
            name: rng.exponential(size=np.shape(gates)) for name, gates in ones(block, model.width).items()
        }
        for name in own.keys() & {"query_key", "value"}:
            own[name] = -np.sort(-own[name], axis=1)
        found[str(index)] = own
    return found


def _spend(budget: float, cost: Callable[[ViT], int] = param_count, model: ViT = TEACHER) -> Plan:
    plan = allocate.uniform(model, identity(model), _scores(model), cost, int(budget * cost(model)), ROUNDING)
    assert plan is not None
    return plan


@pytest.mark.parametrize("cost", [param_count, macs])
@pytest.mark.parametrize("model", [TEACHER, UNEVEN], ids=["even", "uneven"])
def test_a_plan_costs_at_most_its_budget_and_size_never_grows_as_the_budget_falls(
    model: ViT, cost: Callable[[ViT], int]
) -> None:
    budgets = (0.99, 0.9, 0.8, 0.7, 0.65, 0.6)
    shapes = [_spend(budget, cost, model).shape_of(model) for budget in budgets]
    for budget, shape, larger in zip(budgets, shapes, [model, *shapes]):
        assert cost(shape) <= int(budget * cost(model))
        assert param_count(shape) <= param_count(larger)
        assert macs(shape) <= macs(larger)
        for small, large in zip(shape.blocks, larger.blocks, strict=True):
            assert all(a <= b for a, b in zip(dataclasses.astuple(small), dataclasses.astuple(large)))


def test_what_was_cut_is_a_multiple_of_the_rounding() -> None:
    touched = set()
    for budget in (0.9, 0.6, 0.4):
        for layer in _spend(budget).layers:
            for size, full, multiple in (
                (layer.qk_dim, 10, 4),
                (layer.v_dim, 10, 4),
                (len(layer.neurons), 40, 8),
            ):
                assert size == full or size % multiple == 0
                touched.add(size)
    assert touched - {10, 40}  # something was cut


def test_a_budget_below_the_smallest_layers_gives_no_plan() -> None:
    assert allocate.uniform(TEACHER, identity(TEACHER), _scores(), param_count, 100, ROUNDING) is None


def test_uniform_keeps_every_head_and_the_same_sizes_everywhere() -> None:
    plan = _spend(0.5)
    assert len({layer.block for layer in plan.layers}) == 1
    assert all(layer.heads == (0, 1, 2, 3) for layer in plan.layers)


def test_layers_that_were_dropped_stay_dropped() -> None:
    layers = without_layers(identity(TEACHER), {1})
    plan = allocate.uniform(TEACHER, layers, _scores(), param_count, param_count(TEACHER) // 2, ROUNDING)
    assert plan is not None
    assert [layer.source for layer in plan.layers] == [0, 2]


def test_of_equal_scores_the_first_are_kept_in_their_order() -> None:
    assert allocate.best(np.array([1.0, 3.0, 1.0, 3.0, 1.0]), 3) == (0, 1, 3)


def test_a_stated_shape_keeps_the_best_of_what_is_asked_and_all_of_the_rest() -> None:
    plan = allocate.stated(TEACHER, _scores(), {0}, num_heads=2, mlp_dim=16)
    assert plan.shape_of(TEACHER).blocks == (Block(2, 10, 10, 16),) * 2
    for layer in plan.layers:
        own = _scores()[str(layer.source)]
        assert min(own["heads"][list(layer.heads)]) > max(np.delete(own["heads"], layer.heads))
        assert min(own["mlp"][list(layer.neurons)]) > max(np.delete(own["mlp"], layer.neurons))
    assert allocate.stated(TEACHER, _scores(), set(), 0, 0) == identity(TEACHER)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_heads": 5, "mlp_dim": 0}, r"num_heads=5 is above the teacher's 4"),
        ({"num_heads": 0, "mlp_dim": 41}, r"mlp_dim=41 .* 40"),
    ],
)
def test_a_stated_shape_above_the_teacher_is_refused_with_both_numbers(
    asked: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        allocate.stated(TEACHER, _scores(), set(), **asked)


def test_the_smallest_models_are_one_least_branch_each_in_the_narrowest_stream() -> None:
    found = allocate.smallest(UNEVEN, ROUNDING)
    blocks = [
        (Block(*sizes),)
        for sizes in ((1, 4, 4, 0), (0, 0, 0, 8), (1, 4, 3, 0), (0, 0, 0, 8), (1, 2, 4, 0), (0, 0, 0, 7))
    ]
    assert [shape.blocks for shape in found] == blocks
    assert {shape.width for shape in found} == {4}


def test_widths_are_multiples_of_the_rounding_and_the_teachers_own() -> None:
    assert allocate.widths(dataclasses.replace(SMALL, width=18), ROUNDING) == [4, 8, 12, 16, 18]
    # Whatever the rounding, no width that `width.check_width` refuses.
    assert allocate.widths(SMALL, dataclasses.replace(ROUNDING, width=1))[0] == allocate.LEAST_WIDTH
    headless = dataclasses.replace(SMALL, num_classes=0)
    assert allocate.widths(headless, ROUNDING) == [16]  # its stream is its answer
