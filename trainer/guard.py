"""Steps that are left out: whose loss or gradients are not finite, or far above what they have been of late.

The parameters and the optimiser stay as they were; the step counts, and what it would have learnt from is on record.
"""

from typing import Any

import jax
import jax.numpy as jnp

RECENT = 128  # steps whose losses and gradient norms tell what is usual
SKIPPED = "skipped"  # among a step's metrics: true where the step was left out
Recent = dict[
    str, jax.Array
]  # "values" (RECENT, 2): loss and gradient norm, as a ring; "seen": how many there were


def nothing_seen() -> Recent:
    """What a fresh run knows."""
    return {"values": jnp.zeros((RECENT, 2)), "seen": jnp.zeros((), jnp.int32)}


def judge(recent: Recent, loss: jax.Array, norm: jax.Array, sigmas: float) -> tuple[jax.Array, Recent]:
    """Whether to take a step of this loss and gradient norm, and what is known behind it.

    An outlier is above mean + `sigmas` standard deviations of the last RECENT finite steps, once there are as many (0: none is).
    It joins them, so that a level that stays becomes usual.
    """
    found = jnp.stack([loss, norm])
    finite = jnp.isfinite(found).all()
    values, seen = recent["values"], recent["seen"]
    limit = values.mean(axis=0) + sigmas * values.std(axis=0)
    outlier = (seen >= RECENT) & (found > limit).any() if sigmas else jnp.bool_(False)
    written = values.at[seen % RECENT].set(found)
    known = {"values": jnp.where(finite, written, values), "seen": seen + finite.astype(jnp.int32)}
    return finite & ~outlier, known


def chosen(taken: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the step is taken, else `old`: trees of arrays alike."""
    return jax.tree.map(lambda one, other: jnp.where(taken, one, other), new, old)
