"""The model description: everything needed to rebuild a model's arrays, and nothing else.

A small tagged union of frozen dataclasses; today it has one member, `ViT`, which covers everything pruned. A named variant
is a value of it. Checkpoints, plans and bundles carry it as JSON. Standard library only, at the bottom of `trainer`.
"""

import dataclasses
import difflib
import re
from typing import Any, Literal

from serving.command import UserError

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """One encoder block: `num_heads` heads of `qk_dim` query/key and `v_dim` value dims, and `mlp_dim` MLP neurons.

    A block without heads has no attention branch, a block without neurons no MLP branch.
    """

    num_heads: int
    qk_dim: int
    v_dim: int
    mlp_dim: int


@dataclasses.dataclass(frozen=True)
class ViT:
    """A pre-LayerNorm Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) with its own shape in every block."""

    image_size: tuple[int, int]  # (H, W) pixels
    channels: int
    patch_size: int
    width: int
    blocks: tuple[Block, ...]
    num_classes: int
    pooling: Literal["cls", "gap"] = "cls"
    gelu: Literal["tanh", "erf"] = "tanh"
    norm_eps: float = 1e-6
    kind: Literal["vit"] = "vit"

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("channels", "patch_size", "width", "num_classes")}
        if min(sizes.values()) < 1:
            listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise UserError(f"a model of {listed} is impossible; all of them are 1 or above")
        if any(side < self.patch_size for side in self.image_size):
            raise UserError(
                f"image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels; use larger images"
            )
        if self.pooling not in ("cls", "gap") or self.gelu not in ("tanh", "erf"):
            raise UserError(
                f"pooling {self.pooling!r} must be cls or gap, and gelu {self.gelu!r} tanh or erf"
            )
        for index, block in enumerate(self.blocks):
            present = {block.num_heads > 0, block.qk_dim > 0, block.v_dim > 0}
            if min(dataclasses.astuple(block)) < 0 or len(present) > 1:
                raise UserError(
                    f"block {index} has impossible sizes {block}; heads and their dims are all positive or all zero"
                )

    @property
    def num_patches(self) -> int:
        """P, the number of patches; a remainder of the image that fills no patch is not seen (VALID convolution)."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def num_tokens(self) -> int:
        """T, patches plus the class token where there is one."""
        return self.num_patches + (self.pooling == "cls")


def uniform(num_layers: int, num_heads: int, head_dim: int, mlp_dim: int) -> tuple[Block, ...]:
    """`num_layers` equal blocks, as published models have them."""
    return (Block(num_heads, head_dim, head_dim, mlp_dim),) * num_layers


def param_count(model: ViT) -> int:
    """The number of parameters, equal to the number of elements in the model's arrays."""
    d = model.width
    patch = model.patch_size**2 * model.channels * d + d
    tokens = (d if model.pooling == "cls" else 0) + model.num_tokens * d
    head = d * model.num_classes + model.num_classes
    return patch + tokens + sum(block_params(block, d) for block in model.blocks) + 2 * d + head


def block_params(block: Block, width: int) -> int:
    """The parameters of one block in a residual stream of `width` channels, its LayerNorms included."""
    n, k, v, f = dataclasses.astuple(block)
    attention = 2 * n * k * (width + 1) + n * v * (width + 1) + n * v * width + width + 2 * width if n else 0
    mlp = width * f + f + f * width + width + 2 * width if f else 0
    return attention + mlp


def macs(model: ViT) -> int:
    """Multiply-accumulates of one image's forward pass: patch embedding, matrix products of the blocks, head."""
    patch = model.num_patches * model.patch_size**2 * model.channels * model.width
    blocks = sum(block_macs(block, model.width, model.num_tokens) for block in model.blocks)
    return patch + blocks + model.width * model.num_classes


def block_macs(block: Block, width: int, num_tokens: int) -> int:
    """Multiply-accumulates of one block on `num_tokens` tokens."""
    n, k, v, f = dataclasses.astuple(block)
    projections = num_tokens * width * n * (2 * k + 2 * v)
    attention = num_tokens**2 * n * (k + v)
    return projections + attention + 2 * num_tokens * width * f


def to_json(model: ViT) -> dict[str, Any]:
    """The description as plain JSON values, with its schema version."""
    return {
        "schema_version": SCHEMA_VERSION,
        **dataclasses.asdict(model),
        "image_size": list(model.image_size),
    }


def from_json(value: dict[str, Any]) -> ViT:
    """The description that `to_json` wrote.

    Raises:
      UserError: for another schema version, an unknown kind, or fields that do not fit.
    """
    fields = dict(value)
    version = fields.pop("schema_version", None)
    if version != SCHEMA_VERSION or fields.get("kind") != "vit":
        raise UserError(
            f"model description of schema version {version} and kind {fields.get('kind')!r} cannot be read; "
            f"this Vitforge reads version {SCHEMA_VERSION} of kind 'vit'"
        )
    try:
        blocks = tuple(
            Block(**{name: int(size) for name, size in block.items()}) for block in fields.pop("blocks")
        )
        height, width = (int(side) for side in fields.pop("image_size"))
        for name in ("channels", "patch_size", "width", "num_classes"):
            fields[name] = int(fields[name])
        return ViT(image_size=(height, width), blocks=blocks, **fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"model description is damaged: {error}; write the checkpoint again") from error


@dataclasses.dataclass(frozen=True)
class _Size:
    """What a variant's name stands for; image size, channels and classes come from the data."""

    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    pooling: Literal["cls", "gap"]


# Ti and S: table 1 of "How to train your ViT?" (arXiv:2106.10270); B to H: table 1 of arXiv:2010.11929. The first two are ours.
_VARIANTS: dict[str, _Size] = {
    "ViT-digits": _Size(64, 6, 4, 256, 4, "gap"),
    "ViT-fashion": _Size(128, 6, 4, 512, 7, "gap"),
    "ViT-Ti_16": _Size(192, 12, 3, 768, 16, "cls"),
    "ViT-S_16": _Size(384, 12, 6, 1536, 16, "cls"),
    "ViT-S_32": _Size(384, 12, 6, 1536, 32, "cls"),
    "ViT-B_16": _Size(768, 12, 12, 3072, 16, "cls"),
    "ViT-B_32": _Size(768, 12, 12, 3072, 32, "cls"),
    "ViT-L_16": _Size(1024, 24, 16, 4096, 16, "cls"),
    "ViT-L_32": _Size(1024, 24, 16, 4096, 32, "cls"),
    "ViT-H_14": _Size(1280, 32, 16, 5120, 14, "cls"),
}


def variant_names() -> tuple[str, ...]:
    """The names that `named` knows."""
    return tuple(_VARIANTS)


def named(name: str, image_size: tuple[int, int], channels: int, num_classes: int) -> ViT:
    """The variant called `name` (`Ti_16`, `ViT-Ti_16`, `Ti/16` …) for these images and classes.

    Raises:
      UserError: for an unknown name, with the nearest known one.
    """
    wanted = _spelling(name)
    known = {_spelling(variant): variant for variant in _VARIANTS}
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)
        raise UserError(
            f"unknown model {name!r}; nearest is {known[near[0]]!r}, all are {', '.join(_VARIANTS)}"
        )
    size = _VARIANTS[known[wanted]]
    return ViT(
        image_size=image_size,
        channels=channels,
        patch_size=size.patch_size,
        width=size.width,
        blocks=uniform(size.num_layers, size.num_heads, size.width // size.num_heads, size.mlp_dim),
        num_classes=num_classes,
        pooling=size.pooling,
    )


def _spelling(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("vit")
