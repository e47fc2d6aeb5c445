"""The nearest that is possible, as text that can be asked for: rounded to the side on which it still is possible."""

import math
from collections.abc import Callable

_DIGITS = 6


def at_least(value: float) -> str:
    """Six digits of `value` or of a little more: nothing below it is possible."""
    return _rounded(value, math.ceil)


def at_most(value: float) -> str:
    """Six digits of `value` or of a little less: nothing above it is possible."""
    return _rounded(value, math.floor)


def _rounded(value: float, away: Callable[[float], int]) -> str:
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS) if value > 0 else 1.0
    return f"{away(value / step) * step:.{_DIGITS}g}"
