"""The ResNet stem of the hybrids: ResNet-v1 with GroupNorm and standardised kernels (BiT, arXiv:1912.11370, section 3.1).

Shapes: B batch, H W pixels or cells, C channels. Padding is TensorFlow's SAME: what is odd goes to the bottom and the right.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.description import Convolution, Stem, unit_convolutions

_GROUPS = 32  # Wu and He 2018, arXiv:1803.08494


class StandardisedConv(nnx.Module):
    """A convolution without bias whose kernel has mean 0 and deviation 1 per output channel (arXiv:1903.10520, equation 3)."""

    def __init__(self, shape: Convolution, stem: Stem, rngs: nnx.Rngs) -> None:
        size = (shape.kernel, shape.kernel, shape.inputs, shape.outputs)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), size))
        self.strides = (shape.stride, shape.stride)
        self.eps, self.eps_on = stem.kernel_eps, stem.kernel_eps_on

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, ⌈H / stride⌉, ⌈W / stride⌉, outputs)."""
        return jax.lax.conv_general_dilated(
            x, self._standardised(), self.strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def _standardised(self) -> jax.Array:
        kernel = jnp.asarray(self.kernel[...])  # NumPy, which sums otherwise, may have been bound
        centred = kernel - kernel.mean(axis=(0, 1, 2))
        if self.eps_on == "variance":
            return centred / jnp.sqrt(centred.var(axis=(0, 1, 2)) + self.eps)
        return centred / (centred.std(axis=(0, 1, 2)) + self.eps)


def _norm(shape: Convolution, stem: Stem, rngs: nnx.Rngs, fresh_scale: float = 1.0) -> nnx.GroupNorm:
    init = nnx.initializers.constant(fresh_scale)
    return nnx.GroupNorm(shape.outputs, _GROUPS, epsilon=stem.norm_eps, scale_init=init, rngs=rngs)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; ReLU after the addition (He et al. 2015, arXiv:1512.03385, figure 5)."""

    def __init__(self, stem: Stem, stage: int, unit: int, rngs: nnx.Rngs) -> None:
        shapes = unit_convolutions(stem, stage, unit)
        conv, norm = partial(StandardisedConv, stem=stem, rngs=rngs), partial(_norm, stem=stem, rngs=rngs)
        self.conv1, self.conv1_norm = conv(shapes["conv1"]), norm(shapes["conv1"])
        self.conv2, self.conv2_norm = conv(shapes["conv2"]), norm(shapes["conv2"])
        # A fresh unit passes its shortcut on (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        self.conv3, self.conv3_norm = conv(shapes["conv3"]), norm(shapes["conv3"], fresh_scale=0.0)
        self.has_proj = "proj" in shapes
        if self.has_proj:
            self.proj, self.proj_norm = conv(shapes["proj"]), norm(shapes["proj"])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, ⌈H / stride⌉, ⌈W / stride⌉, 4 · inner channels); the stride is that of the 3x3."""
        shortcut = self.proj_norm(self.proj(x)) if self.has_proj else x
        y = jax.nn.relu(self.conv1_norm(self.conv1(x)))
        y = jax.nn.relu(self.conv2_norm(self.conv2(y)))
        return jax.nn.relu(shortcut + self.conv3_norm(self.conv3(y)))


class ResNetStem(nnx.Module):
    """Images → the grid of cells that the patch embedding reads."""

    def __init__(self, stem: Stem, channels: int, rngs: nnx.Rngs) -> None:
        root = Convolution(7, channels, stem.width, 2)
        self.root, self.root_norm = StandardisedConv(root, stem, rngs), _norm(root, stem, rngs)
        stages = {str(s): _stage(stem, s, count, rngs) for s, count in enumerate(stem.stages)}
        self.stages = nnx.Dict(stages)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, rows, columns, channels) as `Stem.grid` and `Stem.out_channels` say."""
        x = jax.nn.relu(self.root_norm(self.root(images)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for s in range(len(self.stages)):
            stage = self.stages[str(s)]
            for u in range(len(stage)):
                x = stage[str(u)](x)
        return x


def _stage(stem: Stem, stage: int, count: int, rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict({str(unit): Bottleneck(stem, stage, unit, rngs) for unit in range(count)})
