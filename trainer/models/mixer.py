"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601) as a Flax NNX module.

Shapes: B batch, H W pixels, C channels, P patches, D width.
"""

from functools import partial

import jax
from flax import nnx

from trainer.description import Mixer
from trainer.models.encoder import Mlp
from trainer.models.layers import WRITTEN_OUT, Carry, Layers, through
from trainer.models.outputs import Outputs
from trainer.models.regularisation import OFF, Drop, Regularisation


class MixerBlock(nnx.Module):
    """One MLP over the patches of every channel, then one over the channels of every patch (equation 1)."""

    def __init__(self, model: Mixer, rngs: nnx.Rngs) -> None:
        norm = partial(nnx.LayerNorm, model.width, epsilon=model.norm_eps, rngs=rngs)
        self.norm1, self.norm2 = norm(), norm()
        self.tokens = Mlp(model.num_patches, model.tokens_mlp_dim, model.gelu, rngs)
        self.channels = Mlp(model.width, model.channels_mlp_dim, model.gelu, rngs)

    def mix_tokens(self, x: jax.Array) -> jax.Array:
        """The token-mixing branch of the residual stream x (B, P, D)."""
        return self.tokens(self.norm1(x).swapaxes(1, 2))[0].swapaxes(1, 2)

    def mix_channels(self, x: jax.Array) -> jax.Array:
        """The channel-mixing branch of the residual stream x (B, P, D)."""
        return self.channels(self.norm2(x))[0]


class MlpMixer(nnx.Module):
    """Images (B, H, W, C) → logits (B, num_classes), or features (B, D) where there is no head."""

    def __init__(self, model: Mixer, rngs: nnx.Rngs) -> None:
        patch = (model.patch_size, model.patch_size)
        self.patch = nnx.Conv(model.channels, model.width, patch, strides=patch, padding="VALID", rngs=rngs)
        self.blocks = nnx.Dict({str(index): MixerBlock(model, rngs) for index in range(model.num_blocks)})
        self.norm = nnx.LayerNorm(model.width, epsilon=model.norm_eps, rngs=rngs)
        self.has_head = model.num_classes > 0
        if self.has_head:
            zeros = nnx.initializers.zeros_init()
            self.head = nnx.Linear(model.width, model.num_classes, kernel_init=zeros, rngs=rngs)

    def __call__(
        self,
        images: jax.Array,
        gates: None = None,
        regularisation: Regularisation = OFF,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, num_classes), or features (B, D); `key` switches `regularisation` on.

        Called as the ViT is, so that one step trains both; there are no units to gate.
        """
        return self.outputs(images, gates, regularisation, key).logits

    def outputs(
        self,
        images: jax.Array,
        gates: None = None,
        regularisation: Regularisation = OFF,
        key: jax.Array | None = None,
        layers: Layers = WRITTEN_OUT,
    ) -> Outputs:
        """The logits, what the one head says, and the residual stream (B, P, D) behind every block."""
        drop = Drop(regularisation, key, len(self.blocks))

        def step(block: MixerBlock, x: Carry, index: jax.Array | int) -> Carry:
            x = x + drop.branch(block.mix_tokens(x), index, 0)
            return x + drop.branch(block.mix_channels(x), index, 1)

        blocks = [self.blocks[str(index)] for index in range(len(self.blocks))]
        tokens = self.patch(images)
        embedded = drop.embedded(tokens.reshape(tokens.shape[0], -1, tokens.shape[-1]))
        x, streams = through(blocks, step, embedded, layers)
        features = self.norm(x).mean(axis=1)
        logits = self.head(features) if self.has_head else features
        return Outputs(logits, (logits,) * self.has_head, tuple(streams))
