"""A model as it was stored, made into the one that was asked for: another resolution, another head."""

import dataclasses
from typing import Literal

import numpy as np

from serving.command import UserError
from trainer.description import Mixer, Model, TwoTowers, ViT
from trainer.models.build import flatten, init_params, param_shapes
from trainer.weights import positions
from trainer.weights.forms import Array, Shape
from trainer.weights.report import Report

Head = Literal["keep", "reinit", "remove"]
HEADS = ("keep", "reinit", "remove")
ALLOWED = ("missing", "unused", "resized")
Arrays = dict[str, Array]  # by our "/"-joined names


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of stored weights; the arguments of `trainer.weights.load.load_weights`."""

    image_size: tuple[int, int] | None = None
    head: Head = "keep"
    num_classes: int | None = None
    allow: frozenset[str] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(self.allow - set(ALLOWED))
        if unknown:
            raise UserError(f"allow has {', '.join(unknown)}; it takes {', '.join(ALLOWED)}")
        if self.head not in HEADS:
            raise UserError(f"head {self.head!r} must be one of {', '.join(HEADS)}")
        if self.num_classes is not None and (self.num_classes < 1 or self.head == "remove"):
            raise UserError(
                f"num_classes {self.num_classes} with head={self.head}: classes are 1 or more, and need a head"
            )
        if self.image_size is not None and min(self.image_size) < 1:
            raise UserError(f"image_size {self.image_size} is no size; give height and width in pixels")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model as it was found, whole but perhaps for a head that nobody wants."""

    model: Model
    arrays: Arrays
    report: Report


def shapes_of(model: Model) -> dict[str, Shape]:
    """The shapes of all arrays of `model` by name."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(param_shapes(model)).items()}


def replaced_head(model: Model, wanted: Wanted, source: str) -> frozenset[str]:
    """The names of the stored head's arrays when another one, or none, is wanted.

    Raises:
      UserError: when the head that is wanted is not to be had.
    """
    if not isinstance(model, ViT | Mixer):
        if wanted.head != "keep" or wanted.num_classes is not None:
            raise UserError(
                f"{source} is no classifier; its heads are part of it, leave head and num_classes out"
            )
        return frozenset()
    stored, asked = model.num_classes, wanted.num_classes
    if wanted.head == "keep" and asked not in (None, stored):
        raise UserError(
            f"{source} has a head of {stored} classes, asked for are {asked}; take them all, or head=reinit for a new head"
        )
    if wanted.head == "reinit" and not (asked or stored):
        raise UserError(f"{source} has no head, so head=reinit needs num_classes")
    heads = ("head/", "head_dist/")
    return frozenset(name for name in shapes_of(model) if name.startswith(heads) and wanted.head != "keep")


def filled(stored: Stored, missing: tuple[str, ...], seed: int) -> Stored:
    """`stored` with fresh arrays of the names in `missing`."""
    if not missing:
        return stored
    fresh = flatten(init_params(stored.model, seed))
    made = {name: np.asarray(fresh[name], np.float32) for name in missing}
    lines = tuple(f"{name} {array.shape}: fresh" for name, array in made.items())
    report = dataclasses.replace(stored.report, created=stored.report.created + lines)
    arrays = stored.arrays | made
    return Stored(
        stored.model, {name: arrays[name] for name in shapes_of(stored.model) if name in arrays}, report
    )


def adapted(stored: Stored, wanted: Wanted, source: str) -> Stored:
    """`stored` at the resolution and with the head that are wanted.

    Raises:
      UserError: when the model cannot be had so.
    """
    return _with_head(_resized(stored, wanted, source), wanted, source)


def _with_head(stored: Stored, wanted: Wanted, source: str) -> Stored:
    dropped = replaced_head(stored.model, wanted, source)
    if wanted.head == "keep" or not isinstance(stored.model, ViT | Mixer):
        return stored
    classes = 0 if wanted.head == "remove" else wanted.num_classes or stored.model.num_classes
    old, model = shapes_of(stored.model), dataclasses.replace(stored.model, num_classes=classes)
    rest = {name: array for name, array in stored.arrays.items() if name not in dropped}
    new = {name: shape for name, shape in shapes_of(model).items() if name not in rest}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in new.items()}
    report = dataclasses.replace(
        stored.report,
        loaded=tuple(name for name in stored.report.loaded if name not in dropped),
        created=stored.report.created + tuple(f"{name} {shape}: zeros" for name, shape in new.items()),
        unused=stored.report.unused
        + tuple(f"{name} {old[name]}: not the head that was asked for" for name in sorted(dropped)),
    )
    return Stored(model, rest | zeros, report)


def _resized(stored: Stored, wanted: Wanted, source: str) -> Stored:
    model, size = stored.model, wanted.image_size
    if size is None:
        return stored
    match model:
        case ViT():
            return _with_positions(stored, model, dataclasses.replace(model, image_size=size), "pos")
        case TwoTowers():
            resized = dataclasses.replace(model.image, image_size=size)
            moved = _with_positions(stored, model.image, resized, "image/pos")
            return dataclasses.replace(moved, model=dataclasses.replace(model, image=resized))
        case Mixer():
            other = dataclasses.replace(model, image_size=size)
            if other.num_patches == model.num_patches:
                return dataclasses.replace(stored, model=other)
            raise UserError(
                f"{source} is an MLP-Mixer, which its token MLPs tie to {model.num_patches} patches; "
                f"image_size {size} has {other.num_patches}, leave it at {model.image_size}"
            )
    raise UserError(f"{source} takes no images; leave image_size out")


def _with_positions(stored: Stored, old: ViT, new: ViT, name: str) -> Stored:
    if old.grid == new.grid:
        return dataclasses.replace(stored, model=new)
    before = stored.arrays[name]
    after = positions.resize(before, old.num_prefix, old.grid, new.grid)
    report = dataclasses.replace(
        stored.report,
        loaded=tuple(one for one in stored.report.loaded if one != name),
        resized=(*stored.report.resized, f"{name} {before.shape} → {after.shape}"),
    )
    return Stored(new, {**stored.arrays, name: after}, report)
