"""The ResNet stem of the hybrids."""

import dataclasses
from typing import Literal

from serving.command import UserError

GROUPS = 32  # Wu and He 2018, arXiv:1803.08494


@dataclasses.dataclass(frozen=True)
class Stem:
    """A (partial) ResNet-v1 in front of the patch embedding (arXiv:2010.11929, appendix B; BiT, arXiv:1912.11370).

    Root: 7x7 convolution of `width` channels with stride 2, then a 3x3 max-pool with stride 2. Stage i has `stages[i]` bottleneck
    units of width * 2**i inner channels (four times as many come out), and every stage but the first halves the grid.
    Kernels are standardised, GroupNorm has 32 groups, padding is TensorFlow's SAME.

    A stem that was cut says in `groups` how many of GroupNorm's groups are left of the inner channels of each unit, from the
    input up. Its kernels are used as they are: one whose inputs are fewer would be standardised to another kernel.
    """

    width: int
    stages: tuple[int, ...]
    norm_eps: float = 1e-6
    # What keeps a kernel's standardisation from dividing by 0: added to the deviation (BiT), or to the variance (timm).
    kernel_eps: float = 1e-5
    kernel_eps_on: Literal["deviation", "variance"] = "deviation"
    groups: tuple[int, ...] = ()  # empty: all, and the kernels are standardised

    def __post_init__(self) -> None:
        if self.width < 32 or self.width % 32 or min(self.stages, default=1) < 1:
            raise UserError(
                f"a stem of width {self.width} and stages {self.stages} is impossible; "
                "the width is a multiple of GroupNorm's 32 groups, and every stage has a unit"
            )
        if self.kernel_eps_on not in ("deviation", "variance"):
            raise UserError(f"kernel_eps_on {self.kernel_eps_on!r} must be deviation or variance")
        whole = len(self.groups) == self.num_units and all(1 <= left <= GROUPS for left in self.groups)
        if self.groups and not whole:
            raise UserError(
                f"a stem of {self.num_units} units cannot keep {self.groups} groups; each unit keeps 1 to {GROUPS}"
            )

    @property
    def num_units(self) -> int:
        """Bottleneck units of all stages."""
        return sum(self.stages)

    @property
    def groups_by_unit(self) -> tuple[int, ...]:
        """Of GroupNorm's groups, how many each unit has over its inner channels."""
        return self.groups or (GROUPS,) * self.num_units

    @property
    def standardised(self) -> bool:
        """Whether kernels are standardised before they are used."""
        return not self.groups

    @property
    def places(self) -> list[tuple[int, int]]:
        """(stage, unit in it) of every unit, from the input up."""
        return [(stage, unit) for stage, count in enumerate(self.stages) for unit in range(count)]

    @property
    def out_channels(self) -> int:
        """Channels that reach the patch embedding."""
        return self.width * 2 ** (len(self.stages) + 1) if self.stages else self.width

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of what reaches the patch embedding; SAME padding rounds halves up."""
        rows, columns = image_size
        for _ in range(2 + max(len(self.stages) - 1, 0)):
            rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution of a stem, followed by a GroupNorm of `groups` groups over its outputs; it has no bias."""

    kernel: int
    inputs: int
    outputs: int
    stride: int
    groups: int = GROUPS

    @property
    def params(self) -> int:
        """Kernel, and the GroupNorm's scale and bias."""
        return self.kernel**2 * self.inputs * self.outputs + 2 * self.outputs


def unit_convolutions(stem: Stem, stage: int, unit: int) -> dict[str, Convolution]:
    """The convolutions of one bottleneck unit by name; `proj` only where the shortcut changes shape."""
    inner = stem.width * 2**stage
    before = (
        stem.width if stage == 0 else 2 * inner
    )  # the stage before gives four times its own inner channels
    inputs, stride = (before, 2 if stage else 1) if unit == 0 else (4 * inner, 1)
    left = stem.groups_by_unit[stem.places.index((stage, unit))]
    kept = inner // GROUPS * left
    convolutions = {
        "conv1": Convolution(1, inputs, kept, 1, left),
        "conv2": Convolution(3, kept, kept, stride, left),
        "conv3": Convolution(1, kept, 4 * inner, 1),
    }
    if inputs != 4 * inner or stride != 1:
        convolutions["proj"] = Convolution(1, inputs, 4 * inner, stride)
    return convolutions
