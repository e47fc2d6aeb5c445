"""Gradient accumulation inside a step: one batch in several parts, one after another, so that activations of one are held.

A part takes every n-th example: a shard of the batch holds examples that follow each other, so each part has an equal share of
every shard, and no example moves to another device. (Cutting the batch in n runs of examples moves nearly all of them.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mean_over(parts: int, run: Callable[[Any, jax.Array | int], Any], batch: Any) -> Any:
    """The mean of what `run` (part of the batch, its number from 0) makes of `parts` equal parts of `batch` (arrays (B, …))."""
    if parts == 1:
        return run(batch, 0)

    def cut(array: jax.Array) -> jax.Array:
        return array.reshape(len(array) // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    def add(total: Any, given: tuple[Any, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, run(*given)), None

    cut_batch = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda array: array[0], cut_batch)
    zeros = jax.tree.map(lambda made: jnp.zeros(made.shape, made.dtype), jax.eval_shape(run, first, 0))
    total, _ = jax.lax.scan(add, zeros, (cut_batch, jnp.arange(parts)))
    return jax.tree.map(lambda array: array / parts, total)
