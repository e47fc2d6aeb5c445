"""Dropout and stochastic depth (Huang et al. 2016, arXiv:1603.09382), the same for every family; keys come from the caller."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """Dropout rate after embeddings and branches, and the stochastic depth rate of the last block (linear from 0)."""

    dropout: float = 0.0
    stochastic_depth: float = 0.0


OFF = Regularisation()
_BRANCHES = 2  # of a block


class Drop:
    """Drops with a key for each place of the model, derived from one; does nothing without a key."""

    def __init__(self, rates: Regularisation, key: jax.Array | None, depth: int) -> None:
        self._rates, self._key, self._depth = rates, key, depth

    def embedded(self, x: jax.Array) -> jax.Array:
        """`x` of any shape, what enters the first block, after dropout."""
        return self._elements(x, 0)

    def branch(self, x: jax.Array, index: jax.Array | int, number: int) -> jax.Array:
        """What branch `number` (0 or 1) of block `index` adds, (B, …), after dropout and, for whole examples, stochastic depth."""
        place = 1 + _BRANCHES * index + number
        x = self._elements(x, place)
        if self._rates.stochastic_depth == 0.0:
            return x
        rate = self._rates.stochastic_depth * index / max(self._depth - 1, 1)
        return self._drop(x, rate, (x.shape[0], *(1,) * (x.ndim - 1)), (place, 1))

    def _elements(self, x: jax.Array, place: jax.Array | int) -> jax.Array:
        return x if self._rates.dropout == 0.0 else self._drop(x, self._rates.dropout, x.shape, (place, 0))

    def _drop(
        self,
        x: jax.Array,
        rate: jax.Array | float,
        shape: tuple[int, ...],
        place: tuple[jax.Array | int, int],
    ) -> jax.Array:
        if self._key is None:
            return x
        key = jax.random.fold_in(jax.random.fold_in(self._key, place[0]), place[1])
        keep = jax.random.bernoulli(key, 1 - rate, shape)
        return jnp.where(keep, x / (1 - rate), 0.0).astype(x.dtype)
