"""LiT's two towers (Zhai et al. 2022, arXiv:2111.07991): images and texts in one embedding space.

Shapes: B images, A texts, H W pixels, C channels, T tokens, E embedding.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.description import TwoTowers
from trainer.models.text import TextEncoder
from trainer.models.vit import VisionTransformer

# Where both papers begin: likeness times 10, and nearly no pair taken for one (arXiv:2303.15343, section 3.2).
_FIRST_T, _FIRST_BIAS = math.log(10.0), -10.0
_NORM_EPS = 1e-8  # added to the norm, as published, so that an embedding of zeros stays one


class ImageTextPair(nnx.Module):
    """Images (B, H, W, C) and tokens (A, T) → normalised embeddings (B, E) and (A, E)."""

    def __init__(self, model: TwoTowers, rngs: nnx.Rngs) -> None:
        self.image = VisionTransformer(model.image, rngs)
        self.text = TextEncoder(model.text, rngs)
        self.t = nnx.Param(jnp.full((1,), _FIRST_T))
        if model.bias:
            self.b = nnx.Param(jnp.full((1,), _FIRST_BIAS))

    def embed_images(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) → embeddings of length 1 (B, E)."""
        return _normalise(self.image(images))

    def embed_texts(self, tokens: jax.Array) -> jax.Array:
        """Tokens (A, T) int → embeddings of length 1 (A, E)."""
        return _normalise(self.text(tokens))

    def multiplier(self) -> jax.Array:
        """What dot products of embeddings are multiplied by before a softmax, (1,): the inverse of a temperature."""
        return jnp.exp(self.t[...])

    def __call__(self, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The embeddings of both, (B, E) and (A, E)."""
        return self.embed_images(images), self.embed_texts(tokens)


def _normalise(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + _NORM_EPS)
