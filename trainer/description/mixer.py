"""MLP-Mixer."""

import dataclasses
from typing import Literal

from serving.command import UserError
from trainer.description.vit import check_sizes


@dataclasses.dataclass(frozen=True)
class Mixer:
    """An MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601); its token MLPs tie it to one number of patches."""

    image_size: tuple[int, int]  # (H, W) pixels
    channels: int
    patch_size: int
    width: int
    num_blocks: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    num_classes: int
    gelu: Literal["tanh", "erf"] = "tanh"
    norm_eps: float = 1e-6
    kind: Literal["mixer"] = "mixer"

    def __post_init__(self) -> None:
        names = ("channels", "patch_size", "width", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")
        check_sizes(self, names)
        if any(side < self.patch_size for side in self.image_size):
            raise UserError(
                f"image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels; use larger images"
            )
        if self.gelu not in ("tanh", "erf"):
            raise UserError(f"gelu {self.gelu!r} must be tanh or erf")

    @property
    def num_patches(self) -> int:
        """P, the number of patches; a remainder that fills no patch is not seen."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def num_outputs(self) -> int:
        """What one image becomes: as many logits as classes, or as many features as the width when there is no head."""
        return self.num_classes or self.width
