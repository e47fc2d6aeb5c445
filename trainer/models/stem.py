"""The ResNet stem of the hybrids: ResNet-v1 with GroupNorm and standardised kernels (BiT, arXiv:1912.11370, section 3.1).

Shapes: B batch, H W pixels or cells, C channels. Padding is TensorFlow's SAME: what is odd goes to the bottom and the right.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.description import Convolution, Stem, unit_convolutions

UnitGates = Mapping[
    str, jax.Array
]  # conv1 and conv2 (groups,): what GroupNorm's groups of inner channels are multiplied by
Taps = dict[str, jax.Array]


class StandardisedConv(nnx.Module):
    """A convolution without bias whose kernel has mean 0 and deviation 1 per output channel (arXiv:1903.10520, equation 3).

    In a stem that was cut the kernel is used as it is.
    """

    def __init__(self, shape: Convolution, stem: Stem, rngs: nnx.Rngs) -> None:
        size = (shape.kernel, shape.kernel, shape.inputs, shape.outputs)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), size))
        self.strides = (shape.stride, shape.stride)
        self.eps, self.eps_on, self.plain = stem.kernel_eps, stem.kernel_eps_on, not stem.standardised

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, ⌈H / stride⌉, ⌈W / stride⌉, outputs)."""
        return jax.lax.conv_general_dilated(
            x, self.used_kernel(), self.strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def used_kernel(self) -> jax.Array:
        """The kernel (H, W, I, O) that images meet."""
        kernel = jnp.asarray(self.kernel[...])  # NumPy, which sums otherwise, may have been bound
        if self.plain:
            return kernel
        centred = kernel - kernel.mean(axis=(0, 1, 2))
        if self.eps_on == "variance":
            return centred / jnp.sqrt(centred.var(axis=(0, 1, 2)) + self.eps)
        return centred / (centred.std(axis=(0, 1, 2)) + self.eps)


def _norm(shape: Convolution, stem: Stem, rngs: nnx.Rngs, fresh_scale: float = 1.0) -> nnx.GroupNorm:
    init = nnx.initializers.constant(fresh_scale)
    return nnx.GroupNorm(shape.outputs, shape.groups, epsilon=stem.norm_eps, scale_init=init, rngs=rngs)


def _gated(x: jax.Array, gates: UnitGates | None, name: str) -> jax.Array:
    """(B, H, W, C) with each of as many equal groups of channels as there are gates multiplied by its own."""
    return x if gates is None else x * jnp.repeat(gates[name], x.shape[-1] // len(gates[name]))


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

    def __call__(self, x: jax.Array, gates: UnitGates | None = None) -> tuple[jax.Array, Taps]:
        """(B, H, W, C) → (B, ⌈H / stride⌉, ⌈W / stride⌉, 4 · inner channels); the stride is that of the 3x3.

        Taps: inner1 and inner2 (B, ·, ·, inner channels), what conv2 and conv3 read, and made2 and made3, what these two make
        before their norms.
        """
        shortcut = self.proj_norm(self.proj(x)) if self.has_proj else x
        inner1 = _gated(jax.nn.relu(self.conv1_norm(self.conv1(x))), gates, "conv1")
        made2 = self.conv2(inner1)
        inner2 = _gated(jax.nn.relu(self.conv2_norm(made2)), gates, "conv2")
        made3 = self.conv3(inner2)
        taps = {"inner1": inner1, "made2": made2, "inner2": inner2, "made3": made3}
        return jax.nn.relu(shortcut + self.conv3_norm(made3)), taps


class ResNetStem(nnx.Module):
    """Images → the grid of cells that the patch embedding reads."""

    def __init__(self, stem: Stem, channels: int, rngs: nnx.Rngs) -> None:
        root = Convolution(7, channels, stem.width, 2)
        self.root, self.root_norm = StandardisedConv(root, stem, rngs), _norm(root, stem, rngs)
        stages = {str(s): _stage(stem, s, count, rngs) for s, count in enumerate(stem.stages)}
        self.stages = nnx.Dict(stages)

        self.places = stem.places

    def __call__(self, images: jax.Array, gates: Mapping[str, UnitGates] | None = None) -> jax.Array:
        """(B, H, W, C) → (B, rows, columns, channels) as `Stem.grid` and `Stem.out_channels` say; `gates` by `gates_name`."""
        x = self.begin(images)
        for index in range(len(self.places)):
            x, _ = self.unit(index)(x, None if gates is None else gates[gates_name(index)])
        return x

    def begin(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) → what the first unit reads."""
        x = jax.nn.relu(self.root_norm(self.root(images)))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")

    def unit(self, index: int) -> Bottleneck:
        """The unit at `index`, counted from the input through all stages."""
        stage, unit = self.places[index]
        return self.stages[str(stage)][str(unit)]


def gates_name(unit: int) -> str:
    """What the gates of a unit are called beside those of blocks."""
    return f"stem unit {unit}"


def _stage(stem: Stem, stage: int, count: int, rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict({str(unit): Bottleneck(stem, stage, unit, rngs) for unit in range(count)})
