"""Products that train as if they were in eight bits already: quantization-aware training.

What the exporter rounds is rounded here in the forward pass: the kernel of every product with a weight, symmetric with a scale for
each output, and what feeds it, on 256 codes between its extremes in the batch; the classifier stays float. The backward pass takes
rounding for the identity (straight-through, arXiv:1308.3432; arXiv:1712.05877, §3).
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)

_STEPS, _GREATEST = 255, 127
_HEADS = ("head", "head_dist")
_SMALLEST = 1e-12  # a step, where all values are zero


def in_eight_bits(module: Model) -> Model:
    """`module` itself, whose products with a weight round both factors; its heads stay float."""
    kept = {id(getattr(module, name, None)) for name in _HEADS}
    for _, part in nnx.iter_graph(module):
        if id(part) in kept:
            continue
        if isinstance(part, nnx.Linear | nnx.LinearGeneral):
            part.dot_general = _rounded_dot
        elif isinstance(part, nnx.Conv):
            part.conv_general_dilated = _rounded_conv
    return module


def _rounded_dot(
    values: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None, **options: Any
) -> jax.Array:
    summed = dimensions[0][1]
    return jax.lax.dot_general(
        rounded_activations(values), rounded_kernel(kernel, summed), dimensions, precision, **options
    )


def _rounded_conv(values: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """Of kernels (height, width, inputs, outputs)."""
    return jax.lax.conv_general_dilated(
        rounded_activations(values), rounded_kernel(kernel, (0, 1, 2)), *arguments, **options
    )


def rounded_activations(values: jax.Array) -> jax.Array:
    """`values` of any shape on 256 codes between their extremes, zero among them."""
    least, greatest = jnp.minimum(values.min(), 0), jnp.maximum(values.max(), 0)
    step = jnp.maximum((greatest - least) / _STEPS, _SMALLEST)
    zero = jnp.round(-least / step)
    codes = jnp.clip(jnp.round(values / step) + zero, 0, _STEPS)
    return _straight_through(values, (codes - zero) * step)


def rounded_kernel(kernel: jax.Array, summed: tuple[int, ...]) -> jax.Array:
    """`kernel` on codes of ±127 steps, a step for each place of the axes that are not `summed`."""
    step = jnp.maximum(jnp.abs(kernel).max(axis=summed, keepdims=True) / _GREATEST, _SMALLEST)
    return _straight_through(kernel, jnp.round(kernel / step) * step)


def _straight_through(values: jax.Array, rounded: jax.Array) -> jax.Array:
    return values + jax.lax.stop_gradient(rounded - values)
