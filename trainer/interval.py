"""How sure a measured accuracy is. Standard library only: reports use it without starting JAX."""

import math

_Z95 = 1.959964  # two-sided 95 % point of the normal distribution


def wilson(fraction: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a fraction seen in `count` trials (Wilson 1927), as fractions; honest near 0 and 1."""
    square = _Z95**2
    centre = (fraction + square / (2 * count)) / (1 + square / count)
    half = (
        _Z95 * math.sqrt(fraction * (1 - fraction) / count + square / (4 * count**2)) / (1 + square / count)
    )
    return max(0.0, centre - half), min(1.0, centre + half)
