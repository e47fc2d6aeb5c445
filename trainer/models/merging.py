"""Token merging: alike patches become one token, a fixed number of them, so that shapes stay static.

ToMe (Bolya et al. 2023, arXiv:2210.09461, section 3): every other patch looks for the patch between them whose key is most like
its own; those that found the most alike go into them, by means weighted with how many patches a token stands for. Here tokens
keep their order, so that neighbours stay neighbours for the next block's matching. `trainer.export.writers.merging` is the twin
of this file: where two pairs are exactly alike, both take the first.

Shapes: B batch, T tokens (prefix, then P patches), D width, N heads, K key dim, r pairs.
"""

import jax
import jax.numpy as jnp

NORM_EPS = 1e-6  # added to the length of a key, so that a key of zeros is like nothing


def merge(
    x: jax.Array, sizes: jax.Array | None, keys: jax.Array, count: int, prefix: int
) -> tuple[jax.Array, jax.Array]:
    """The stream x (B, T, D) with `count` pairs merged, (B, T - r, D), and the sizes of its tokens, (B, T - r, 1).

    Args:
      x: the residual stream after attention.
      sizes: (B, T, 1), how many patches each token stands for; None: one each.
      keys: (B, T, N, K), of this block's attention.
      count: r, at most half of the patches.
      prefix: tokens in front that are never merged.
    """
    tokens = x.shape[1]
    gone, into = matches(keys, count, prefix)
    # In float32 whatever the stream is in: sizes are counts, and means are over many.
    weighted = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(jnp.float32)
    if sizes is not None:
        weighted = weighted * sizes
    added = jax.nn.one_hot(into, tokens, axis=1) @ _rows(weighted, gone)
    leaves = jax.nn.one_hot(gone, tokens, axis=1).sum(axis=-1)
    # The tokens that stay, in their order: the first is worth most, those that leave are worth nothing.
    kept = jax.lax.top_k((1 - leaves) * jnp.arange(tokens, 0, -1), tokens - count)[1]
    merged = _rows(weighted + added, kept)
    return (merged[..., :-1] / merged[..., -1:]).astype(x.dtype), merged[..., -1:]


def matches(keys: jax.Array, count: int, prefix: int) -> tuple[jax.Array, jax.Array]:
    """The places (B, r) of the tokens that leave, most alike first, and (B, r) those of the tokens that they go into."""
    keys = keys.mean(axis=2)[:, prefix:]
    keys = keys / (jnp.linalg.norm(keys, axis=-1, keepdims=True) + NORM_EPS)
    alike = jnp.einsum("bik,bjk->bij", keys[:, ::2], keys[:, 1::2])
    chosen = jax.lax.top_k(alike.max(axis=-1), count)[1]
    nearest = jnp.take_along_axis(alike.argmax(axis=-1), chosen, axis=1)
    return prefix + 2 * chosen, prefix + 1 + 2 * nearest


def _rows(x: jax.Array, places: jax.Array) -> jax.Array:
    """(B, T, D) at `places` (B, r) → (B, r, D)."""
    return jnp.take_along_axis(x, places[..., None], axis=1)
