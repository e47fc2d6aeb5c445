"""A measured accuracy, and how two of them compare. Fractions inside, points and percent in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.interval import wilson

_Z95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Score:
    """Top-1 with its 95 % interval (Wilson), over so many examples."""

    top1: float
    low: float
    high: float
    examples: int

    @staticmethod
    def counted(correct: int, examples: int) -> "Score":
        """From how many were right."""
        return Score(correct / examples, *wilson(correct / examples, examples), examples)

    @staticmethod
    def of(evaluated: Mapping[str, Any]) -> "Score":
        """From the result of `trainer.evaluate`."""
        return Score(*(evaluated[name] for name in ("top1", "top1_low", "top1_high", "examples")))

    def __str__(self) -> str:
        return f"{100 * self.top1:.2f} ({100 * self.low:.2f} to {100 * self.high:.2f})"

    def below(self, other: "Score") -> float:
        """How many points this one lies below `other`; negative when above."""
        return round(100 * (other.top1 - self.top1), 4)


@dataclasses.dataclass(frozen=True)
class Drop:
    """Points of top-1 lost between two models asked about the same images, with a 95 % interval of the paired difference."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired_drop(before: Sequence[bool], after: Sequence[bool]) -> Drop:
    """From whether each image was named rightly before and after: only those that changed say anything (McNemar 1947)."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    count = len(before)
    mean = (lost - won) / count
    half = _Z95 * math.sqrt(max(lost + won - (lost - won) ** 2 / count, 0.0)) / count
    return Drop(100 * mean, 100 * (mean - half), 100 * (mean + half))
