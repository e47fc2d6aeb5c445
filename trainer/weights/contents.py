"""What a file of weights turned out to hold: the model as it is stored, and where each of its arrays lies."""

import dataclasses
import math
from typing import Any

from serving.command import UserError
from trainer.description import Mixer, Model, TwoTowers, ViT, named
from trainer.weights.forms import Places, Shape
from trainer.weights.layouts import Layout
from trainer.weights.positions import square_grid


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the arrays themselves say, whatever their names; None where there is no such array.

    `positions` is the shape of the position table without a row for a class token that comes later, `mixed_patches` the number of
    patches that a Mixer's token MLPs read.
    """

    kind: str  # as a description's
    channels: int
    num_classes: int
    positions: Shape | None = None
    prefix_rows: int = 0
    mixed_patches: int = 0
    has_class: bool = False
    has_distillation: bool = False
    has_stem: bool = False


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file that was recognised. `set_aside` are the arrays that are no part of the model by design, with the reason."""

    description: Model
    places: Places
    family: str
    set_aside: dict[str, str] = dataclasses.field(default_factory=dict)
    layout: Layout | None = None
    head_remarks: tuple[str, ...] = ()  # what to know before the stored head is used
    labels: tuple[str, ...] = ()
    preprocess: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # what the file's neighbours say of it


_PROBE = (224, 224)  # every published model can be described at this size


def is_pair(name: str) -> bool:
    """Whether the variant `name` has two towers."""
    return isinstance(named(name, _PROBE, 3, 1), TwoTowers)


def describe(name: str, facts: Facts, source: str) -> Model:
    """The variant `name` with the size of images, the classes and the pooling that the file has.

    Raises:
      UserError: for a variant of another family than the file's, or positions that form no square.
    """
    variant = named(name, _PROBE, facts.channels, facts.num_classes)
    _check_family(name, variant, facts, source)
    if isinstance(variant, TwoTowers):
        image = _sized(variant.image, facts, source)
        # A pair's sizes of embeddings are its variant's.
        return dataclasses.replace(
            variant, image=dataclasses.replace(image, num_classes=variant.image.num_classes)
        )
    if isinstance(variant, ViT):
        if variant.pooling == "gap" and facts.has_class:
            raise UserError(
                f"{source} holds a model with a class token, {name} averages its patches; give the name without the averaging"
            )
        return _sized(variant, facts, source)
    if isinstance(variant, Mixer):
        side = _side(facts.mixed_patches, source, "its token MLPs read") * variant.patch_size
        return dataclasses.replace(variant, image_size=(side, side))
    raise UserError(
        f"{source}: {name} is a model of kind {variant.kind!r}, of which no weights are published"
    )


def _sized(variant: ViT, facts: Facts, source: str) -> ViT:
    pooled = dataclasses.replace(variant, pooling="cls" if facts.has_class else "gap")
    if facts.positions is None:  # reported as missing when arrays are read
        return pooled
    if len(facts.positions) != 3:
        raise UserError(f"{source}: positions have shape {facts.positions}, expected is (1, tokens, width)")
    side = _side(facts.positions[1] - facts.prefix_rows, source, f"positions of shape {facts.positions} have")
    pixels = side * variant.patch_size * _stride(variant)
    return dataclasses.replace(pooled, image_size=(pixels, pixels))


def _stride(variant: ViT) -> int:
    """Pixels to a cell of the stem's grid."""
    return 2 ** (2 + max(len(variant.stem.stages) - 1, 0)) if variant.stem else 1


def _side(patches: int, source: str, what: str) -> int:
    grid = square_grid(patches)
    if grid is None:
        near = math.isqrt(max(patches, 1))
        raise UserError(
            f"{source}: {what} {patches} patches, which are no square grid ({near}² is {near**2}); "
            "published models are square, give such a file"
        )
    return grid[0]


def _check_family(name: str, variant: Model, facts: Facts, source: str) -> None:
    asked = _family(variant)
    held = _held(facts)
    if asked != held:
        raise UserError(
            f"{source} holds {held}, {name} is {asked}; give a name of its own family (python -m tools.models)"
        )


def _held(facts: Facts) -> str:
    if facts.kind != "vit":
        return _KINDS[facts.kind]
    return _vit_family(facts.has_stem, facts.has_distillation)


def _family(variant: Model) -> str:
    if isinstance(variant, ViT):
        return _vit_family(variant.stem is not None, variant.distilled)
    return _KINDS[variant.kind]


_KINDS = {"mixer": "an MLP-Mixer", "two_towers": "a LiT pair of towers", "text": "a text tower"}


def _vit_family(has_stem: bool, distilled: bool) -> str:
    if distilled:
        return "a DeiT with a distillation token"
    return "a hybrid with a ResNet stem" if has_stem else "a plain ViT"
