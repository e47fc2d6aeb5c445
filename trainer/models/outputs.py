"""All that one forward pass of a classifier gives, for those who learn from more than its answer."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """What a model says and what it was made of; under jit, what nobody uses is not computed.

    Shapes: B batch, T tokens, D width.
    """

    logits: jax.Array  # (B, classes), the mean of the heads; (B, D) where there is no head
    heads: tuple[jax.Array, ...] = ()  # (B, classes) of each head: class token, distillation token
    blocks: tuple[jax.Array, ...] = ()  # (B, T, D), the residual stream behind each block
