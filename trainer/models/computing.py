"""The number format that a model computes in, apart from the one that its parameters are kept in."""

from typing import Any

import jax.numpy as jnp

from trainer.models.build import Params

_IN_FLOAT32 = ("head", "head_dist")  # logits of large batches differ by less than bfloat16 resolves


def in_dtype(params: Params, dtype: str) -> Params:
    """`params` to compute in `dtype` with, by name; heads stay as they are, so that logits and loss are float32.

    Layer norms and softmax take their sums in float32 in any case. Gradients flow back in the parameters' own format.
    """
    to = jnp.dtype(dtype)
    return {name: value if name in _IN_FLOAT32 else _cast(value, to) for name, value in params.items()}


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value
