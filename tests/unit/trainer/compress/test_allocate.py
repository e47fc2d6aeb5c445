import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_models import SMALL, UNEVEN
from trainer.compress import allocate
from trainer.compress.allocate import Rounding
from trainer.compress.plan import Plan, identity, without_layers
from trainer.compress.scores import Scores, ones
from trainer.description import Block, ViT, macs, param_count, uniform

TEACHER = dataclasses.replace(SMALL, blocks=uniform(3, 4, 10, 40))
ROUNDING = Rounding(mlp=8, head_dim=4)
SPENDERS = (allocate.greedy, allocate.uniform)
Spender = Callable[..., Plan | None]


@functools.cache
def _scores(model: ViT = TEACHER) -> Scores:
    """Random scores, later dims less than earlier ones, as ordering leaves them."""
    rng = np.random.default_rng(0)
    found: Scores = {}
    for index, block in enumerate(model.blocks):
        own = {name: rng.exponential(size=np.shape(gates)) for name, gates in ones(block).items()}
        for name in own.keys() & {"query_key", "value"}:
            own[name] = -np.sort(-own[name], axis=1)
        found[str(index)] = own
    return found


def _spend(
    spender: Spender, budget: float, cost: Callable[[ViT], int] = param_count, model: ViT = TEACHER
) -> Plan:
    plan = spender(model, identity(model), _scores(model), cost, int(budget * cost(model)), ROUNDING)
    assert plan is not None
    return plan


@pytest.mark.parametrize("cost", [param_count, macs])
@pytest.mark.parametrize("spender", SPENDERS)
@pytest.mark.parametrize("model", [TEACHER, UNEVEN], ids=["even", "uneven"])
def test_a_plan_costs_at_most_its_budget_and_size_never_grows_as_the_budget_falls(
    model: ViT, spender: Spender, cost: Callable[[ViT], int]
) -> None:
    budgets = (0.99, 0.9, 0.8, 0.7, 0.65, 0.6)
    shapes = [_spend(spender, budget, cost, model).shape_of(model) for budget in budgets]
    for budget, shape, larger in zip(budgets, shapes, [model, *shapes]):
        assert cost(shape) <= int(budget * cost(model))
        assert param_count(shape) <= param_count(larger)
        assert macs(shape) <= macs(larger)
        for small, large in zip(shape.blocks, larger.blocks, strict=True):
            assert all(a <= b for a, b in zip(dataclasses.astuple(small), dataclasses.astuple(large)))


def test_greedy_leaves_no_more_of_the_budget_unused_than_its_largest_step() -> None:
    head = param_count(TEACHER) - param_count(
        dataclasses.replace(TEACHER, blocks=(Block(3, 10, 10, 40), *TEACHER.blocks[1:]))
    )
    for budget in (0.8, 0.65, 0.5, 0.3):
        unused = int(budget * param_count(TEACHER)) - param_count(
            _spend(allocate.greedy, budget).shape_of(TEACHER)
        )
        assert 0 <= unused < head


@pytest.mark.parametrize("spender", SPENDERS)
def test_what_was_cut_is_a_multiple_of_the_rounding(spender: Spender) -> None:
    touched = set()
    for budget in (0.9, 0.6, 0.4):
        for layer in _spend(spender, budget).layers:
            for size, full, multiple in (
                (layer.qk_dim, 10, 4),
                (layer.v_dim, 10, 4),
                (len(layer.neurons), 40, 8),
            ):
                assert size == full or size % multiple == 0
                touched.add(size)
    assert touched - {10, 40}  # something was cut


def test_at_the_smallest_every_block_keeps_a_head_some_dims_and_some_neurons() -> None:
    least = dataclasses.replace(TEACHER, blocks=(Block(1, 4, 4, 8),) * 3)
    plan = allocate.greedy(TEACHER, identity(TEACHER), _scores(), param_count, param_count(least), ROUNDING)
    assert plan is not None
    assert plan.shape_of(TEACHER) == least
    for layer in plan.layers:
        own = _scores()[str(layer.source)]
        assert layer.heads == (int(np.argmax(own["heads"])),)
        assert layer.neurons == tuple(sorted(np.argsort(-own["mlp"])[:8]))


@pytest.mark.parametrize("spender", SPENDERS)
def test_a_budget_below_the_smallest_layers_gives_no_plan(spender: Spender) -> None:
    assert spender(TEACHER, identity(TEACHER), _scores(), param_count, 100, ROUNDING) is None


def test_greedy_gives_up_what_scores_nothing_first() -> None:
    scores = {
        index: {name: np.array(value) for name, value in own.items()} for index, own in _scores().items()
    }
    scores["1"]["mlp"][8:16] = 0
    one_step = param_count(TEACHER) - 1
    plan = allocate.greedy(TEACHER, identity(TEACHER), scores, param_count, one_step, ROUNDING)
    assert plan is not None
    assert [len(layer.neurons) for layer in plan.layers] == [40, 32, 40]
    assert not set(plan.layers[1].neurons) & set(range(8, 16))


def test_uniform_keeps_every_head_and_the_same_sizes_everywhere() -> None:
    plan = _spend(allocate.uniform, 0.5)
    assert len({layer.block for layer in plan.layers}) == 1
    assert all(layer.heads == (0, 1, 2, 3) for layer in plan.layers)


def test_layers_that_were_dropped_stay_dropped() -> None:
    for spender in SPENDERS:
        layers = without_layers(identity(TEACHER), {1})
        plan = spender(TEACHER, layers, _scores(), param_count, param_count(TEACHER) // 2, ROUNDING)
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


def test_the_smallest_models_are_one_least_block_each_whatever_branches_it_has() -> None:
    found = [shape.blocks for shape in allocate.smallest(UNEVEN, ROUNDING)]
    assert found == [(Block(1, 4, 4, 8),), (Block(1, 4, 3, 0),), (Block(0, 0, 0, 8),), (Block(1, 2, 4, 7),)]
