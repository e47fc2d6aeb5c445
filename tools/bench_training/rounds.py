"""Rounds that alternate between those that are compared, and what they come to."""

import statistics
from collections.abc import Callable, Mapping

ROUNDS = 5

Spread = dict[str, float]


def alternate(measures: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Name → what its measure gave in each round (it is told which); every round asks all, one after the other."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(ROUNDS):
        for name, measure in measures.items():
            found[name].append(measure(number))
    return found


def spread(values: list[float]) -> Spread:
    """Median, low and high."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(ones: list[float], others: list[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(ones, others, strict=True)]
