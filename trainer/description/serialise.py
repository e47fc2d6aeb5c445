"""Descriptions as plain JSON values, and back."""

import dataclasses
from typing import Any

from serving.command import UserError
from trainer.description.mixer import Mixer
from trainer.description.stem import Stem
from trainer.description.text import TextTower
from trainer.description.towers import TwoTowers
from trainer.description.vit import Block, ViT

SCHEMA_VERSION = 1

Classifier = ViT | Mixer  # images → logits
Model = ViT | Mixer | TextTower | TwoTowers

_KINDS: dict[str, type[ViT | Mixer | TextTower | TwoTowers]] = {
    "vit": ViT,
    "mixer": Mixer,
    "text": TextTower,
    "two_towers": TwoTowers,
}
_LATER: tuple[tuple[str, Any], ...] = (("merge", 0), ("groups", ()), ("bias", False))
_NUMBERS = {"int": int, "float": float}


def to_json(model: Model) -> dict[str, Any]:
    """The description as plain JSON values, with its schema version."""
    return {"schema_version": SCHEMA_VERSION, **_plain(dataclasses.asdict(model))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        # What merges nothing and has a whole stem is written as before there was either, so that older versions read it.
        return {name: _plain(item) for name, item in value.items() if (name, item) not in _LATER}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_json(value: dict[str, Any]) -> Model:
    """The description that `to_json` wrote.

    Raises:
      UserError: for another schema version, an unknown kind, or fields that do not fit.
    """
    fields = dict(value)
    version, kind = fields.pop("schema_version", None), fields.get("kind")
    if version != SCHEMA_VERSION or kind not in _KINDS:
        raise UserError(
            f"model description of schema version {version} and kind {kind!r} cannot be read; "
            f"this Vitforge reads version {SCHEMA_VERSION} of the kinds {', '.join(_KINDS)}"
        )
    try:
        return _model(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"model description is damaged: {error}; write the checkpoint again") from error


def _model(fields: dict[str, Any]) -> Any:
    cls = _KINDS[fields["kind"]]
    return cls(**{name: _field(cls, name, value) for name, value in fields.items()})


def _field(cls: type, name: str, value: Any) -> Any:
    """One field from JSON; what passed through protobuf has its integers as floats."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    if name == "blocks":
        return tuple(Block(**{size: int(count) for size, count in block.items()}) for block in value)
    if name == "image_size":
        height, width = (int(side) for side in value)
        return height, width
    if name in ("stages", "groups"):
        return tuple(int(count) for count in value)
    if name == "stem" and value is not None:
        return Stem(**{item: _field(Stem, item, part) for item, part in value.items()})
    if name in ("image", "text"):
        return _model(value)
    number = _NUMBERS.get(getattr(kinds.get(name), "__name__", ""))
    return value if number is None else number(value)


def require_vit(model: Model, doing: str) -> ViT:
    """`model` itself when it is a ViT with a head.

    Raises:
      UserError: naming what it is instead, and `doing`, what was about to be done with it.
    """
    if not isinstance(model, ViT) or not model.num_classes:
        what = "a ViT without a head" if isinstance(model, ViT) else f"of kind {model.kind!r}"
        raise UserError(f"the model is {what}; {doing} takes a ViT (plain, hybrid or DeiT) with a head")
    return model


def require_classifier(model: Model, doing: str) -> Classifier:
    """`model` itself when it sees images and has a head.

    Raises:
      UserError: naming what it is instead, and `doing`, what was about to be done with it.
    """
    if isinstance(model, TextTower | TwoTowers) or not model.num_classes:
        raise UserError(
            f"the model is of kind {model.kind!r} without a classifier; {doing} takes a classifier of images"
        )
    return model
