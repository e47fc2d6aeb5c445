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


class Drop:
    """Drops with keys derived in order from one; does nothing without a key."""

    def __init__(self, rates: Regularisation, key: jax.Array | None, depth: int) -> None:
        self._rates, self._key, self._depth, self._used = rates, key, depth, 0

    def elements(self, x: jax.Array) -> jax.Array:
        """`x` of any shape after dropout."""
        return self._drop(x, self._rates.dropout, x.shape)

    def branch(self, x: jax.Array, index: int) -> jax.Array:
        """What a branch of block `index` adds, (B, …), after dropout; stochastic depth leaves it out for whole examples."""
        depth_rate = self._rates.stochastic_depth * index / max(self._depth - 1, 1)
        return self._drop(self.elements(x), depth_rate, (x.shape[0], *(1,) * (x.ndim - 1)))

    def _drop(self, x: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
        if self._key is None or rate == 0.0:
            return x
        self._used += 1
        keep = jax.random.bernoulli(jax.random.fold_in(self._key, self._used), 1 - rate, shape)
        return jnp.where(keep, x / (1 - rate), 0.0)
