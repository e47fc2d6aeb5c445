"""What the origin of weights implies beside their names: how images are prepared, and which formulas the library computes with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from serving.preprocess import PreprocessSpec
from trainer.description import Mixer, Model, TwoTowers, ViT

Size = tuple[int, int]
_CENTRED = (127.5, 127.5, 127.5)
# Of ImageNet's training images, on the scale of 0 to 255.
_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def _spec(size: Size, **fields: Any) -> PreprocessSpec:
    height, width = size
    values = {"mean": _CENTRED, "std": _CENTRED, **fields}
    return PreprocessSpec(color="RGB", height=height, width=width, **values)


def _original(size: Size) -> PreprocessSpec:
    """The original code's evaluation: squashed by TensorFlow, whose bilinear does not antialias."""
    return _spec(size, resize="squash", method="bilinear", antialias=False)


def _lit(size: Size) -> PreprocessSpec:
    """LiT's: the same, cut to whole numbers before they are scaled."""
    return dataclasses.replace(_original(size), rounding="down")


def _crop(size: Size, small: float) -> float:
    """The published evaluation crops at 224 px, and takes the whole of the smaller side at 384 px."""
    return 1.0 if min(size) >= 384 else small


def _timm(size: Size) -> PreprocessSpec:
    return _spec(size, resize="crop", method="bicubic", crop_fraction=_crop(size, 0.9))


def _timm_mixer(size: Size) -> PreprocessSpec:
    return _spec(size, resize="crop", method="bicubic", crop_fraction=0.875)


def _deit(size: Size) -> PreprocessSpec:
    imagenet = {"mean": _IMAGENET_MEAN, "std": _IMAGENET_STD}
    return _spec(size, resize="crop", method="bicubic", crop_fraction=_crop(size, 0.875), **imagenet)


def _hugging_face(size: Size) -> PreprocessSpec:
    return _spec(size, resize="squash", method="bilinear")


_FAMILIES: dict[str, Callable[[Size], PreprocessSpec]] = {
    "vit": _original,
    "hybrid": _original,
    "mixer": _original,
    "lit": _lit,
    "timm-vit": _timm,
    "timm-hybrid": _timm,
    "timm-mixer": _timm_mixer,
    "timm-deit": _deit,
    "huggingface-vit": _hugging_face,
    "huggingface-deit": _deit,
}


def image_size(model: Model) -> Size | None:
    """(H, W) of the images that `model` takes; None for a text tower."""
    tower = model.image if isinstance(model, TwoTowers) else model
    return tower.image_size if isinstance(tower, ViT | Mixer) else None


def preprocess_of(family: str, model: Model, said: Mapping[str, Any]) -> PreprocessSpec | None:
    """How images become input of `model`, as its family does it but for what the file's own neighbours `said`.

    None where that is unknown, or no colour images go in.
    """
    tower = model.image if isinstance(model, TwoTowers) else model
    size = image_size(model)
    if size is None or not isinstance(tower, ViT | Mixer) or tower.channels != 3 or family not in _FAMILIES:
        return None
    return dataclasses.replace(_FAMILIES[family](size), **said)


def resized(spec: PreprocessSpec | None, model: Model) -> PreprocessSpec | None:
    """`spec` for the image size of `model`."""
    size = image_size(model)
    return spec if spec is None or size is None else dataclasses.replace(spec, height=size[0], width=size[1])


def published_family(model: Model) -> str:
    """The family of a published npz of `model`."""
    if isinstance(model, ViT):
        return "hybrid" if model.stem else "vit"
    return "lit" if isinstance(model, TwoTowers) else "mixer"


def with_conventions(model: Model, gelu: Literal["tanh", "erf"], norm_eps: float) -> Model:
    """`model` with another library's GELU and LayerNorm epsilon."""
    if isinstance(model, ViT | Mixer):
        return dataclasses.replace(model, gelu=gelu, norm_eps=norm_eps)
    return model
