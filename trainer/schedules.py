"""Weights and temperatures that change over a run, as functions of the step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array | int], jax.Array | float]
CONSTANT = -1.0  # as the end of a decay: there is none


def constant(value: float) -> Schedule:
    """`value` at every step; a plain number, so that nothing of it is left in the compiled step."""
    return lambda step: value


def decay(begin: float, end: float, steps: int, kind: str) -> Schedule:
    """From `begin` at step 0 to `end` at step `steps` and after it: "linear", or "cosine", slow at both ends.

    An `end` of `CONSTANT` stays at `begin`.
    """
    if end in (CONSTANT, begin):
        return constant(begin)

    def value(step: jax.Array | int) -> jax.Array:
        passed = jnp.minimum(step / steps, 1.0)
        share = passed if kind == "linear" else (1 - jnp.cos(math.pi * passed)) / 2
        return begin + (end - begin) * share

    return value
