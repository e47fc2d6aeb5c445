"""The Vision Transformer as Flax NNX modules, with a shape of its own in every block.

Pre-LayerNorm encoder (Dosovitskiy et al. 2021, arXiv:2010.11929). Two things are here for the compressor: every branch can be
called alone and also returns its inner activations ("taps"; jit removes those nobody uses), and every removable unit can be
multiplied by a gate (None means 1). Modules hold no random state: dropout takes its key.

Shapes: B batch, H W pixels, C channels, P patches, T tokens, D width, N heads, K query/key dim, V value dim, F mlp dim.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.description import Block, ViT

BlockGates = Mapping[
    str, jax.Array
]  # heads (N,), query_key (N, K), value (N, V), mlp (F,), attention (), mlp_branch ()
Taps = dict[str, jax.Array]

_xavier = nnx.initializers.xavier_uniform()
_small = nnx.initializers.normal(1e-6)


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """Dropout rate after embeddings and branches, and the stochastic depth rate of the last block (linear from 0)."""

    dropout: float = 0.0
    stochastic_depth: float = 0.0


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

    def __call__(self, x: jax.Array, gates: BlockGates | None = None) -> tuple[jax.Array, Taps]:
        """(B, T, D) → (B, T, D); taps: weights (B, N, T, T) and heads (B, T, N, V), the outputs before the projection."""
        query = _gate(self.query(x), gates, "query_key")
        weights = jax.nn.softmax(jnp.einsum("btnk,bsnk->bnts", query, self.key(x)) * self.scale, axis=-1)
        heads = jnp.einsum("bnts,bsnv->btnv", weights, _gate(self.value(x), gates, "value"))
        if gates is not None and "heads" in gates:
            heads = heads * gates["heads"][:, None]
        return self.out(heads), {"weights": weights, "heads": heads}


class Mlp(nnx.Module):
    """Two dense layers with GELU between them."""

    def __init__(self, width: int, block: Block, gelu: str, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(width, block.mlp_dim, kernel_init=_xavier, bias_init=_small, rngs=rngs)
        self.fc2 = nnx.Linear(block.mlp_dim, width, kernel_init=_xavier, bias_init=_small, rngs=rngs)
        self.approximate = gelu == "tanh"

    def __call__(self, x: jax.Array, gates: BlockGates | None = None) -> tuple[jax.Array, Taps]:
        """(B, T, D) → (B, T, D); taps: hidden (B, T, F), after GELU."""
        hidden = _gate(jax.nn.gelu(self.fc1(x), approximate=self.approximate), gates, "mlp")
        return self.fc2(hidden), {"hidden": hidden}


class EncoderBlock(nnx.Module):
    """One pre-LN block; either branch may be absent."""

    def __init__(self, model: ViT, block: Block, rngs: nnx.Rngs) -> None:
        norm = partial(nnx.LayerNorm, model.width, epsilon=model.norm_eps, rngs=rngs)
        self.has_attention, self.has_mlp = block.num_heads > 0, block.mlp_dim > 0
        if self.has_attention:
            self.norm1 = norm()
            self.attention = Attention(model.width, block, rngs)
        if self.has_mlp:
            self.norm2 = norm()
            self.mlp = Mlp(model.width, block, model.gelu, rngs)

    def attend(self, x: jax.Array, gates: BlockGates | None = None) -> tuple[jax.Array, Taps]:
        """The attention branch of the residual stream x (B, T, D); taps add norm (B, T, D), the branch's input."""
        normed = self.norm1(x)
        out, taps = self.attention(normed, gates)
        return _gate(out, gates, "attention"), {**taps, "norm": normed}

    def transform(self, x: jax.Array, gates: BlockGates | None = None) -> tuple[jax.Array, Taps]:
        """The MLP branch of the residual stream x (B, T, D)."""
        out, taps = self.mlp(self.norm2(x), gates)
        return _gate(out, gates, "mlp_branch"), taps


class VisionTransformer(nnx.Module):
    """Images (B, H, W, C) → logits (B, num_classes)."""

    def __init__(self, model: ViT, rngs: nnx.Rngs) -> None:
        patch = (model.patch_size, model.patch_size)
        self.patch = nnx.Conv(model.channels, model.width, patch, strides=patch, padding="VALID", rngs=rngs)
        if model.pooling == "cls":
            self.cls = nnx.Param(jnp.zeros((1, 1, model.width)))
        position = nnx.initializers.normal(0.02)(rngs.params(), (1, model.num_tokens, model.width))
        self.pos = nnx.Param(position)
        self.blocks = nnx.Dict(
            {str(i): EncoderBlock(model, block, rngs) for i, block in enumerate(model.blocks)}
        )
        self.norm = nnx.LayerNorm(model.width, epsilon=model.norm_eps, rngs=rngs)
        self.head = nnx.Linear(
            model.width, model.num_classes, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )
        self.pooling, self.depth = model.pooling, len(model.blocks)

    def embed(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) → tokens with positions (B, T, D)."""
        tokens = self.patch(images)
        tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        if self.pooling == "cls":
            cls = jnp.broadcast_to(self.cls[...], (tokens.shape[0], 1, tokens.shape[-1]))
            tokens = jnp.concatenate([cls, tokens], axis=1)
        return tokens + self.pos[...]

    def block(self, index: int) -> EncoderBlock:
        """The encoder block at `index`, counted from the input."""
        return self.blocks[str(index)]

    def features(self, x: jax.Array) -> jax.Array:
        """The last residual stream (B, T, D) → what the head reads (B, D)."""
        normed = self.norm(x)
        return normed[:, 0] if self.pooling == "cls" else normed.mean(axis=1)

    def __call__(
        self,
        images: jax.Array,
        gates: Mapping[str, BlockGates] | None = None,
        regularisation: Regularisation = Regularisation(),
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, num_classes); `gates` by block index as text; `key` switches `regularisation` on."""
        drop = _Drop(regularisation, key, self.depth)
        x = drop.elements(self.embed(images))
        for index in range(self.depth):
            block, own = self.block(index), None if gates is None else gates[str(index)]
            if block.has_attention:
                x = x + drop.branch(block.attend(x, own)[0], index)
            if block.has_mlp:
                x = x + drop.branch(block.transform(x, own)[0], index)
        return self.head(self.features(x))


class _Drop:
    """Dropout and stochastic depth with keys derived in order from one; does nothing without a key."""

    def __init__(self, rates: Regularisation, key: jax.Array | None, depth: int) -> None:
        self._rates, self._key, self._depth, self._used = rates, key, depth, 0

    def elements(self, x: jax.Array) -> jax.Array:
        return self._drop(x, self._rates.dropout, x.shape)

    def branch(self, x: jax.Array, index: int) -> jax.Array:
        depth_rate = self._rates.stochastic_depth * index / max(self._depth - 1, 1)
        return self._drop(self.elements(x), depth_rate, (x.shape[0], *(1,) * (x.ndim - 1)))

    def _drop(self, x: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
        if self._key is None or rate == 0.0:
            return x
        self._used += 1
        keep = jax.random.bernoulli(jax.random.fold_in(self._key, self._used), 1 - rate, shape)
        return jnp.where(keep, x / (1 - rate), 0.0)
