"""Until what is measured meets what was asked: block times do not quite add up, so each measurement corrects the next search.

A line `measured = a + b·predicted` goes through what was measured so far; the search is asked again for what the line says will
meet the budget (notes of Puzzletron's authors: a 5 s target gave 5.4 s, for want of this).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from serving.command import progress

Found = TypeVar("Found")
_APART = 0.05
_STEEPER = 3.0  # times the slope between the ends, or as much less steep, a line may be
_AIM = 0.985  # of what was asked: the middle of what is near enough


@dataclasses.dataclass(frozen=True)
class Measured:
    """One end-to-end measurement, in the budget's unit, and the spread of its rounds as a fraction of it."""

    value: float
    spread: float


@dataclasses.dataclass(frozen=True)
class Attempt(Generic[Found]):
    """What one round found, what the line said before, and what was measured."""

    found: Found
    predicted: float
    measured: Measured


@dataclasses.dataclass(frozen=True)
class Line:
    """measured = offset + slope · sum."""

    offset: float
    slope: float

    def at(self, total: float) -> float:
        """What is measured where the table's sum is `total`."""
        return self.offset + self.slope * total

    def sum_for(self, value: float) -> float:
        """The sum at which `value` is measured; none below 0."""
        return max((value - self.offset) / self.slope, 0.0)


def through(points: Sequence[tuple[float, float]], near: float) -> Line:
    """The line through the two of (sum, measured) that are nearest to `near`; rising in any case.

    Sums that are nearly equal give a slope of noise: the second one is a twentieth away from the first at least, and a slope
    that is far from that between the ends gives way to it. Noise only adds to a time: what took longer than a larger sum did
    was disturbed.
    """
    points = _undisturbed(points)
    first, *others = sorted(points, key=lambda point: abs(point[1] - near))
    apart = [point for point in others if abs(point[0] - first[0]) >= _APART * first[0]]
    whole, local = _slope(min(points), max(points)), _slope(first, (apart or [first])[0])
    if whole <= 0:  # noise: only the scale can be trusted
        x, y = (float(np.mean(side)) for side in zip(*points))
        return Line(0.0, y / x) if x > 0 and y > 0 else Line(0.0, 1.0)
    slope = local if whole / _STEEPER <= local <= whole * _STEEPER else whole
    return Line(first[1] - slope * first[0], slope)


def _undisturbed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, none of which lies above one of a larger sum."""
    ordered = sorted(points)
    least = np.minimum.accumulate([measured for _, measured in reversed(ordered)])[::-1]
    return [(total, float(low)) for (total, _), low in zip(ordered, least, strict=True)]


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    (x0, y0), (x1, y1) = one, other
    return (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0


@dataclasses.dataclass(frozen=True)
class Target:
    """At most `asked`, and at least `1 - near` of it; `rounds` searches at most."""

    asked: float
    near: float
    rounds: int


def meet(
    target: Target,
    known: Sequence[tuple[float, float]],
    search: Callable[[float], Found],
    total: Callable[[Found], float],
    measure: Callable[[Found], Measured],
) -> list[Attempt[Found]]:
    """Searches, measures and corrects until one is near enough; all attempts, the best last.

    Args:
      target: what is asked.
      known: (sum, measured) of models measured beforehand, the largest and the smallest of them.
      search: the best model whose sum is at most so much.
      total: the sum of what was found.
      measure: its end-to-end measurement.
    """
    points, attempts = list(known), list[Attempt[Found]]()
    most, least = max(points)[0], min(points)[0]
    with progress(target.rounds, "searches for the budget, at most") as bar:
        for _ in range(target.rounds):
            line = through(points, target.asked)
            found = search(float(np.clip(line.sum_for(_AIM * target.asked), least, most)))
            attempt = Attempt(found, line.at(total(found)), measure(found))
            attempts.append(attempt)
            points.append((total(found), attempt.measured.value))
            bar.advance()
            if 1 - target.near <= attempt.measured.value / target.asked <= 1:
                break
    return sorted(attempts, key=lambda one: _merit(one.measured.value / target.asked))


def _merit(reached: float) -> tuple[bool, float]:
    """Within the budget before above it; then the nearer the better."""
    return reached <= 1, -abs(1 - reached)
