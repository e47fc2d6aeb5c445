"""The Vision Transformer: plain, hybrid (ResNet stem), DeiT (distillation token), and everything that pruning makes of them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from serving.command import UserError
from trainer.description.stem import Stem


@dataclasses.dataclass(frozen=True)
class Block:
    """One encoder block: `num_heads` heads of `qk_dim` query/key and `v_dim` value dims, and `mlp_dim` MLP neurons.

    A block without heads has no attention branch, a block without neurons no MLP branch. Between the two, `merge` pairs of alike
    patches become one token each, in a ViT (arXiv:2210.09461).
    """

    num_heads: int
    qk_dim: int
    v_dim: int
    mlp_dim: int
    merge: int = 0


def uniform(num_layers: int, num_heads: int, head_dim: int, mlp_dim: int) -> tuple[Block, ...]:
    """`num_layers` equal blocks, as published models have them."""
    return (Block(num_heads, head_dim, head_dim, mlp_dim),) * num_layers


def check_blocks(blocks: tuple[Block, ...]) -> None:
    """Refuses blocks that cannot be built.

    Raises:
      UserError: naming the first impossible block.
    """
    for index, block in enumerate(blocks):
        present = {block.num_heads > 0, block.qk_dim > 0, block.v_dim > 0}
        if min(dataclasses.astuple(block)) < 0 or len(present) > 1:
            raise UserError(
                f"block {index} has impossible sizes {block}; heads and their dims are all positive or all zero"
            )
        if block.merge and not block.num_heads:
            raise UserError(
                f"block {index} has no attention, by whose keys tokens are merged; leave out its merge"
            )


@dataclasses.dataclass(frozen=True)
class ViT:
    """A pre-LayerNorm Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) with its own shape in every block.

    `patch_size` counts pixels, or cells of the stem's grid where there is a stem. `distilled` adds DeiT's second token with a
    head of its own (arXiv:2012.12877); both heads' logits are averaged. `num_classes` of 0 means no head: features come out.
    """

    image_size: tuple[int, int]  # (H, W) pixels
    channels: int
    patch_size: int
    width: int
    blocks: tuple[Block, ...]
    num_classes: int
    pooling: Literal["cls", "gap"] = "cls"
    gelu: Literal["tanh", "erf"] = "tanh"
    norm_eps: float = 1e-6
    stem: Stem | None = None
    distilled: bool = False
    kind: Literal["vit"] = "vit"

    def __post_init__(self) -> None:
        check_sizes(self, ("channels", "patch_size", "width"))
        if any(side < self.patch_size for side in self.stem_grid):
            seen = f", of which the stem leaves {self.stem_grid}," if self.stem else ""
            raise UserError(
                f"image_size {self.image_size}{seen} is smaller than one patch of {self.patch_size} pixels; use larger images"
            )
        if self.pooling not in ("cls", "gap") or self.gelu not in ("tanh", "erf"):
            raise UserError(
                f"pooling {self.pooling!r} must be cls or gap, and gelu {self.gelu!r} tanh or erf"
            )
        if self.distilled and self.pooling != "cls":
            raise UserError("a distillation token stands beside a class token; pooling must be cls")
        check_blocks(self.blocks)
        self._check_merges()

    def _check_merges(self) -> None:
        for index, (block, tokens) in enumerate(zip(self.blocks, self.tokens_by_block)):
            patches = tokens - self.num_prefix
            if block.merge > patches // 2:
                raise UserError(
                    f"block {index} merges {block.merge} pairs of its {patches} patches; at most {patches // 2} can be"
                )

    @property
    def stem_grid(self) -> tuple[int, int]:
        """(H, W) of what the patch embedding sees: pixels, or the stem's cells."""
        return self.stem.grid(self.image_size) if self.stem else self.image_size

    @property
    def stem_channels(self) -> int:
        """Channels that the patch embedding sees."""
        return self.stem.out_channels if self.stem else self.channels

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches; a remainder that fills no patch is not seen (VALID convolution)."""
        rows, columns = self.stem_grid
        return rows // self.patch_size, columns // self.patch_size

    @property
    def num_patches(self) -> int:
        """P, the number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def num_prefix(self) -> int:
        """Tokens in front of the patches: the class token and the distillation token, where there are any."""
        return (self.pooling == "cls") + self.distilled

    @property
    def num_tokens(self) -> int:
        """T, patches and the tokens in front of them."""
        return self.num_patches + self.num_prefix

    @property
    def tokens_by_block(self) -> tuple[int, ...]:
        """T as each block takes it in; one more at the end, T as the last block leaves it."""
        merged = itertools.accumulate((block.merge for block in self.blocks), initial=0)
        return tuple(self.num_tokens - gone for gone in merged)

    @property
    def num_outputs(self) -> int:
        """What one image becomes: as many logits as classes, or as many features as the width when there is no head."""
        return self.num_classes or self.width


def merging(model: ViT, counts: Sequence[int]) -> ViT:
    """`model` whose blocks merge so many pairs of tokens each.

    Raises:
      UserError: when a block cannot merge as many.
    """
    blocks = [
        dataclasses.replace(block, merge=count) for block, count in zip(model.blocks, counts, strict=True)
    ]
    return dataclasses.replace(model, blocks=tuple(blocks))


def without_merging(model: ViT) -> ViT:
    """`model` in which every patch stays a token."""
    return merging(model, (0,) * len(model.blocks))


def with_groups(model: ViT, groups: Sequence[int]) -> ViT:
    """`model` whose stem keeps so many groups of the inner channels of each unit; the same model where it has no units.

    Raises:
      UserError: when a unit cannot keep as many.
    """
    if not model.stem or not model.stem.num_units:
        return model
    return dataclasses.replace(model, stem=dataclasses.replace(model.stem, groups=tuple(groups)))


def without_stem(model: ViT) -> ViT:
    """What stands behind the stem of `model`: a plain ViT whose images are the stem's cells."""
    return dataclasses.replace(model, stem=None, image_size=model.stem_grid, channels=model.stem_channels)


def check_sizes(model: object, names: tuple[str, ...]) -> None:
    """Refuses a description whose sizes `names` are not all positive, or whose num_classes is negative.

    Raises:
      UserError: listing them.
    """
    sizes = {name: getattr(model, name) for name in (*names, "num_classes") if hasattr(model, name)}
    if min(sizes[name] for name in names) < 1 or sizes.get("num_classes", 0) < 0:
        listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"a model of {listed} is impossible; sizes are 1 or above (num_classes 0 means no head)"
        )
