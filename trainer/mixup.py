"""Mixup (Zhang et al. 2018, arXiv:1710.09412): every image of a batch blended with another one of it, and the labels alike.

Shapes: B batch, H W pixels, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STREAM = 2**31  # dropout takes small numbers of the same step's key
Rows = np.ndarray[Any, np.dtype[np.int64]]


def partners(batch: int, shares: int) -> Rows:
    """For each row of a global batch, the row of the example that comes after it in the data; the last is followed by the first.

    A global batch holds the share of one reader after another's, and a reader has every `shares`th example: by rows alone, the
    pairs would be others on another number of processes.
    """
    rows = np.arange(batch)
    each = batch // shares
    following = (rows % each * shares + rows // each + 1) % batch
    return np.asarray(following % shares * each + following // shares)


def ratio(seed: int, step: jax.Array | int, alpha: float) -> jax.Array:
    """The share of every image's own in the mix, one number from Beta(alpha, alpha) for each step of a run of this `seed`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), _STREAM)
    return jax.random.beta(key, alpha, alpha)


def mixed(rows: jax.Array, others: Rows, share: jax.Array) -> jax.Array:
    """`share` of each row of (B, …) and 1 - `share` of the row that `others` names for it."""
    return share * rows + (1 - share) * jnp.take(rows, others, axis=0)
