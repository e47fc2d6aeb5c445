"""Every image of a batch mixed with another one of it, and the labels alike.

Mixup (Zhang et al. 2018, arXiv:1710.09412) blends all pixels, CutMix (Yun et al. 2019, arXiv:1905.04899) covers a rectangle.

Shapes: B batch, H W pixels, C channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STREAM = 2**31  # dropout takes small numbers of the same step's key
Rows = np.ndarray[Any, np.dtype[np.int64]]


def partners(batch: int, readers: Sequence[int]) -> Rows:
    """For each row of a global batch, the row of the example that comes after it in the data; the last is followed by the first.

    `readers` says who reads each of the equal shards of a batch, by numbers from 0. One of R readers has every Rth example, in the
    order of its rows: by rows alone, the pairs would be others on another number of processes or another mesh.
    """
    reader = np.repeat(np.asarray(readers), batch // len(readers))
    count = len(set(readers))
    example = np.empty(batch, np.int64)
    for number in range(count):
        rows = np.flatnonzero(reader == number)
        example[rows] = np.arange(len(rows)) * count + number
    row_of = np.argsort(example)
    return np.asarray(row_of[(example + 1) % batch])


def own_share(
    seed: int, step: jax.Array | int, size: tuple[int, int], mixup: float, cutmix: float
) -> jax.Array:
    """What is each image's own at each pixel, (H, W, 1) for `size` (H, W), in one step of a run of this `seed`.

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha); where both are above 0, each has half of the steps.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), _STREAM)
    if not cutmix:
        return jnp.full((*size, 1), jax.random.beta(key, mixup, mixup))
    cut = _uncovered(key, size, cutmix)
    if not mixup:
        return cut
    blend = jnp.full((*size, 1), jax.random.beta(key, mixup, mixup))
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1)), cut, blend)


def _uncovered(key: jax.Array, size: tuple[int, int], alpha: float) -> jax.Array:
    """1 outside of a rectangle (H, W, 1), 0 inside; its centre lies anywhere in the image, so it may be cut off at the edge."""
    covered = jnp.sqrt(1 - jax.random.beta(jax.random.fold_in(key, 2), alpha, alpha))
    centres = jax.random.uniform(jax.random.fold_in(key, 3), (2,))
    inside = [
        jnp.abs(jnp.arange(side) + 0.5 - centre * side) < covered * side / 2
        for side, centre in zip(size, centres, strict=True)
    ]
    return 1.0 - (inside[0][:, None] & inside[1][None, :])[..., None].astype(jnp.float32)


def mixed(rows: jax.Array, others: Rows, share: jax.Array) -> jax.Array:
    """`share` (its shape that of a row, or broadcast to it) of each row of (B, …), and of the row that `others` names the rest."""
    return share * rows + (1 - share) * jnp.take(rows, others, axis=0)
