"""Dynamic programming against trying everything."""

import itertools

import numpy as np
import pytest

from trainer.compress import knapsack


def _groups(rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    sizes = rng.integers(1, 5, 5)
    return [rng.integers(0, 40, size).astype(float) for size in sizes], [
        rng.exponential(size=size) for size in sizes
    ]


def _best(costs: list[np.ndarray], losses: list[np.ndarray], budget: float) -> float:
    """The least loss of all combinations within the budget."""
    found = [
        sum(loss[index] for loss, index in zip(losses, chosen))
        for chosen in itertools.product(*(range(len(cost)) for cost in costs))
        if sum(cost[index] for cost, index in zip(costs, chosen)) <= budget
    ]
    return float(min(found, default=np.inf))


@pytest.mark.parametrize("seed", range(20))
def test_no_combination_within_the_budget_loses_less(seed: int) -> None:
    costs, losses = _groups(np.random.default_rng(seed))
    budget = 100.0  # 20 steps a unit: whole costs are exact
    chosen = knapsack.choose(costs, losses, budget)
    if chosen is None:
        assert _best(costs, losses, budget) == np.inf
        return
    assert sum(cost[index] for cost, index in zip(costs, chosen)) <= budget
    assert sum(loss[index] for loss, index in zip(losses, chosen)) == pytest.approx(
        _best(costs, losses, budget)
    )


def test_a_budget_that_nothing_meets_gives_nothing() -> None:
    assert knapsack.choose([np.array([3.0])], [np.array([0.0])], 2) is None
    assert knapsack.choose([np.array([0.0])], [np.array([0.0])], -1) is None


def test_what_costs_nothing_fits_in_no_budget_at_all() -> None:
    assert knapsack.choose([np.array([1.0, 0.0])], [np.array([0.0, 5.0])], 0) == [1]


def test_losses_fall_as_the_budget_grows() -> None:
    costs, losses = _groups(np.random.default_rng(3))
    found = [knapsack.choose(costs, losses, budget) for budget in (40, 60, 80, 120, 200)]
    sums = [sum(loss[i] for loss, i in zip(losses, one)) for one in found if one is not None]
    assert sums == sorted(sums, reverse=True)
