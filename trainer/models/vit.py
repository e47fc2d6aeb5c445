"""The Vision Transformer as a Flax NNX module: plain, hybrid and DeiT.

Pre-LayerNorm encoder (Dosovitskiy et al. 2021, arXiv:2010.11929), after a ResNet stem in hybrids; DeiT (arXiv:2012.12877) adds
a distillation token with a head of its own. Blocks may merge tokens (`merging`). Modules hold no random state: dropout takes its
key.

Shapes: B batch, H W pixels, C channels, P patches, T tokens, D width, R heads (outputs, not attention).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.description import ViT
from trainer.models.encoder import BlockGates, EncoderBlock, blocks_of
from trainer.models.layers import WRITTEN_OUT, Carry, Layers, through
from trainer.models.merging import merge
from trainer.models.outputs import Outputs
from trainer.models.regularisation import OFF, Drop, Regularisation
from trainer.models.stem import ResNetStem


class VisionTransformer(nnx.Module):
    """Images (B, H, W, C) → logits (B, num_classes), or features (B, D) where there is no head."""

    def __init__(self, model: ViT, rngs: nnx.Rngs) -> None:
        self.stem = ResNetStem(model.stem, model.channels, rngs) if model.stem else None
        patch = (model.patch_size, model.patch_size)
        self.patch = nnx.Conv(
            model.stem_channels, model.width, patch, strides=patch, padding="VALID", rngs=rngs
        )
        self.prefix = ("cls", "dist")[: model.num_prefix]
        for name in self.prefix:
            setattr(self, name, nnx.Param(jnp.zeros((1, 1, model.width))))
        position = nnx.initializers.normal(0.02)(rngs.params(), (1, model.num_tokens, model.width))
        self.pos = nnx.Param(position)
        self.blocks = blocks_of(model, rngs)
        self.norm = nnx.LayerNorm(model.width, epsilon=model.norm_eps, rngs=rngs)
        self.heads = head_names(model)
        zeros = nnx.initializers.zeros_init()
        for name in self.heads:
            setattr(self, name, nnx.Linear(model.width, model.num_classes, kernel_init=zeros, rngs=rngs))
        self.depth, self.num_patches = len(model.blocks), model.num_patches

    def embed(self, images: jax.Array, gates: Mapping[str, BlockGates] | None = None) -> jax.Array:
        """Images (B, H, W, C) → tokens with positions (B, T, D): class token, distillation token, patches."""
        return self.place(self.stem(images, gates) if self.stem else images)

    def place(self, cells: jax.Array) -> jax.Array:
        """What the patch embedding reads, pixels or cells of the stem (B, H, W, C) → tokens with positions (B, T, D)."""
        tokens = self.patch(cells)
        tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        shape = (tokens.shape[0], 1, tokens.shape[-1])
        prefix = [jnp.broadcast_to(getattr(self, name)[...], shape) for name in self.prefix]
        return jnp.concatenate([*prefix, tokens], axis=1) + self.pos[...]

    def block(self, index: int) -> EncoderBlock:
        """The encoder block at `index`, counted from the input."""
        return self.blocks[str(index)]

    def features(self, x: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """The last residual stream (B, T, D) → what each head reads (B, R, D), in the order of `head_names`.

        `sizes` (B, T, 1) says how many patches each token stands for, where any were merged.
        """
        normed = self.norm(x)
        if self.prefix:
            return normed[:, : len(self.prefix)]
        if sizes is None:
            return normed.mean(axis=1, keepdims=True)
        return (normed * (sizes / self.num_patches)).sum(axis=1, keepdims=True)

    def __call__(
        self,
        images: jax.Array,
        gates: Mapping[str, BlockGates] | None = None,
        regularisation: Regularisation = OFF,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, num_classes), or features (B, D); `key` switches `regularisation` on.

        `gates` go by block index as text, those of stem units by `stem.gates_name`.
        """
        return self.outputs(images, gates, regularisation, key).logits

    def outputs(
        self,
        images: jax.Array,
        gates: Mapping[str, BlockGates] | None = None,
        regularisation: Regularisation = OFF,
        key: jax.Array | None = None,
        layers: Layers = WRITTEN_OUT,
    ) -> Outputs:
        """The logits, what each head says, and the residual stream behind every block; `gates` need blocks written out."""
        drop = Drop(regularisation, key, self.depth)

        def step(block: EncoderBlock, carry: Carry, index: jax.Array | int) -> Carry:
            x, sizes = carry
            own = None if gates is None else gates[str(index)]
            if block.has_attention:
                added, taps = block.attend(x, own, sizes)
                x = x + drop.branch(added, index, 0)
                if block.merge:
                    x, sizes = merge(x, sizes, taps["keys"], block.merge, len(self.prefix))
            if block.has_mlp:
                x = x + drop.branch(block.transform(x, own)[0], index, 1)
            return x, sizes

        blocks = [self.block(index) for index in range(self.depth)]
        embedded = drop.embedded(self.embed(images, gates))
        (x, sizes), behind = through(blocks, step, (embedded, None), layers)
        features = self.features(x, sizes)
        said = tuple(getattr(self, name)(features[:, index]) for index, name in enumerate(self.heads))
        # DeiT averages its heads; without heads comes out what they would read.
        logits = sum(said[1:], said[0]) / len(said) if said else features.mean(axis=1)
        return Outputs(logits, said, tuple(stream for stream, _ in behind))


def head_names(model: ViT) -> tuple[str, ...]:
    """The names under which the parameters of `model` hold its heads; none where features come out."""
    return ("head", "head_dist")[: (1 + model.distilled) if model.num_classes else 0]
