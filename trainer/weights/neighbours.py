"""What the JSON files beside a safetensors file say: names of classes, and how images are prepared.

Both are read leniently: what is not there, or is of a form that is not known, is left to the family's own convention.
"""

from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]  # fields of a PreprocessSpec
# Pillow's numbers of its filters.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESIZES = {"center": "crop", "squash": "squash"}


def timm_labels(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The names of the classes in timm's config.json, () when it has none of so many."""
    names = config.get("label_names")
    return tuple(map(str, names)) if isinstance(names, list) and len(names) == num_classes else ()


def hugging_face_labels(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The names of the classes in transformers' config.json, () when it has none of so many, or only made-up ones."""
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != {str(index) for index in range(num_classes)}:
        return ()
    labels = tuple(str(named[str(index)]) for index in range(num_classes))
    return () if labels == tuple(f"LABEL_{index}" for index in range(num_classes)) else labels


def timm_preprocess(config: Mapping[str, Any]) -> Fields:
    """What timm's config.json says of preparing images."""
    said = config.get("pretrained_cfg")
    if not isinstance(said, dict):
        return {}
    fields: Fields = {}
    for name in ("mean", "std"):
        if _is_colour(said.get(name)):
            fields[name] = tuple(255 * value for value in said[name])
    if said.get("interpolation") in _FILTERS.values():
        fields["method"] = said["interpolation"]
    if said.get("crop_mode", "center") in _RESIZES:
        fields["resize"] = _RESIZES[said.get("crop_mode", "center")]
    if isinstance(said.get("crop_pct"), int | float):
        fields["crop_fraction"] = float(said["crop_pct"]) if fields.get("resize") == "crop" else 1.0
    return fields


def hugging_face_preprocess(said: Mapping[str, Any]) -> Fields:
    """What transformers' preprocessor_config.json says of preparing images."""
    fields: Fields = {}
    for name, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if _is_colour(said.get(theirs)) and said.get("do_normalize", True):
            fields[name] = tuple(255 * value for value in said[theirs])
    if said.get("resample") in _FILTERS:
        fields["method"] = _FILTERS[said["resample"]]
    whole, cut = _side(said.get("size")), _side(said.get("crop_size"))
    if said.get("do_center_crop") and whole and cut and cut <= whole:
        fields |= {"resize": "crop", "crop_fraction": cut / whole}
    elif said and not said.get("do_center_crop"):
        fields |= {"resize": "squash", "crop_fraction": 1.0}
    return fields


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)


def _side(size: Any) -> int:
    """The smaller side of a size in transformers' several forms; 0 for none."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else 0
