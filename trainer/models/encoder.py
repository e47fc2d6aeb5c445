"""The transformer block that the ViT and the text towers are made of: attention and MLP, with a shape of their own in every block.

Two things are here for the compressor: every branch can be called alone and also returns its inner activations ("taps"; jit
removes those nobody uses), and every removable unit can be multiplied by a gate (None means 1).

Shapes: B batch, T tokens, D width, N heads, K query/key dim, V value dim, F mlp dim.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.description import Block, TextTower, ViT

# Their names and shapes: norm1 (D,), heads (N,), query_key (N, K), value (N, V), attention (), norm2 (D,), mlp (F,), mlp_branch ()
BlockGates = Mapping[str, jax.Array]
Taps = dict[str, jax.Array]

_xavier = nnx.initializers.xavier_uniform()
_small = nnx.initializers.normal(1e-6)
_MASKED = -1e10  # as a logit: exp is 0 beside any other, and a row of nothing else is uniform instead of NaN


def _gate(x: jax.Array, gates: BlockGates | None, name: str) -> jax.Array:
    return x if gates is None or name not in gates else x * gates[name]


class Attention(nnx.Module):
    """Multi-head self-attention whose query/key and value dims are chosen freely."""

    def __init__(self, width: int, block: Block, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.LinearGeneral, kernel_init=_xavier, rngs=rngs)
        self.query = linear(width, (block.num_heads, block.qk_dim))
        self.key = linear(width, (block.num_heads, block.qk_dim))
        self.value = linear(width, (block.num_heads, block.v_dim))
        self.out = linear((block.num_heads, block.v_dim), width, axis=(-2, -1))
        self.scale = block.qk_dim**-0.5

    def __call__(
        self,
        x: jax.Array,
        gates: BlockGates | None = None,
        mask: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> tuple[jax.Array, Taps]:
        """(B, T, D) → (B, T, D); `mask` (B, T, T) is true where a token (second to last axis) may look at another (last).

        A token that stands for several, by `sizes` (B, T, 1), is looked at as often as all of them (arXiv:2210.09461, equation 1).
        Taps: weights (B, N, T, T), heads (B, T, N, V), the outputs before the projection, and keys (B, T, N, K).
        """
        query, key = _gate(self.query(x), gates, "query_key"), self.key(x)
        # Of the two factors the query is the smaller to scale.
        looks = jnp.einsum("btnk,bsnk->bnts", query * self.scale, key)
        if sizes is not None:
            looks = looks + jnp.log(sizes).reshape(len(x), 1, 1, -1)
        if mask is not None:
            looks = jnp.where(mask[:, None], looks, _MASKED)
        # In float32 whatever the products are in: sums of bfloat16 exponentials lose small weights.
        weights = jax.nn.softmax(looks.astype(jnp.float32), axis=-1).astype(x.dtype)
        heads = jnp.einsum("bnts,bsnv->btnv", weights, _gate(self.value(x), gates, "value"))
        if gates is not None and "heads" in gates:
            heads = heads * gates["heads"][:, None]
        return self.out(heads), {"weights": weights, "heads": heads, "keys": key}


class Mlp(nnx.Module):
    """Two dense layers with GELU between them, over the last axis."""

    def __init__(self, width: int, mlp_dim: int, gelu: Literal["tanh", "erf"], rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(width, mlp_dim, kernel_init=_xavier, bias_init=_small, rngs=rngs)
        self.fc2 = nnx.Linear(mlp_dim, width, kernel_init=_xavier, bias_init=_small, rngs=rngs)
        self.approximate = gelu == "tanh"

    def __call__(self, x: jax.Array, gates: BlockGates | None = None) -> tuple[jax.Array, Taps]:
        """(B, T, D) → (B, T, D); taps: hidden (B, T, F), after GELU."""
        hidden = _gate(jax.nn.gelu(self.fc1(x), approximate=self.approximate), gates, "mlp")
        return self.fc2(hidden), {"hidden": hidden}


class EncoderBlock(nnx.Module):
    """The parts of one block; either branch may be absent. `attend` and `transform` are its branches with the norm first."""

    def __init__(self, model: ViT | TextTower, block: Block, rngs: nnx.Rngs) -> None:
        norm = partial(nnx.LayerNorm, model.width, epsilon=model.norm_eps, rngs=rngs)
        self.has_attention, self.has_mlp, self.merge = block.num_heads > 0, block.mlp_dim > 0, block.merge
        if self.has_attention:
            self.norm1 = norm()
            self.attention = Attention(model.width, block, rngs)
        if self.has_mlp:
            self.norm2 = norm()
            self.mlp = Mlp(model.width, block.mlp_dim, model.gelu, rngs)

    def attend(
        self, x: jax.Array, gates: BlockGates | None = None, sizes: jax.Array | None = None
    ) -> tuple[jax.Array, Taps]:
        """The attention branch of the residual stream x (B, T, D); taps add norm (B, T, D), the branch's input."""
        normed = _gate(self.norm1(x), gates, "norm1")
        out, taps = self.attention(normed, gates, sizes=sizes)
        return _gate(out, gates, "attention"), {**taps, "norm": normed}

    def transform(self, x: jax.Array, gates: BlockGates | None = None) -> tuple[jax.Array, Taps]:
        """The MLP branch of the residual stream x (B, T, D); taps add norm (B, T, D), the branch's input."""
        normed = _gate(self.norm2(x), gates, "norm2")
        out, taps = self.mlp(normed, gates)
        return _gate(out, gates, "mlp_branch"), {**taps, "norm": normed}


def blocks_of(model: ViT | TextTower, rngs: nnx.Rngs) -> nnx.Dict:
    """The encoder blocks of `model` by index as text."""
    return nnx.Dict({str(i): EncoderBlock(model, block, rngs) for i, block in enumerate(model.blocks)})
