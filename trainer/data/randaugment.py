"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): some operations drawn from 14, all at one magnitude.

Strengths go with the magnitude as in AutoAugment (arXiv:1805.09501, table 6), whose largest is 10 here; ViTs were trained with 10
to 20 (arXiv:2106.10270, section 3.3). What comes in from outside the image is grey.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from trainer.data.source import Array

_GREY = 128
_LARGEST = 10.0
Operation = Callable[
    [Image.Image, float, float], Image.Image
]  # (picture, strength from 0 on, sign) → picture


def _moved(picture: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    fill = (_GREY,) * 3 if picture.mode == "RGB" else _GREY
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=fill)


def _rotated(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    fill = (_GREY,) * 3 if picture.mode == "RGB" else _GREY
    return picture.rotate(sign * 30 * strength, fillcolor=fill)


def _enhanced(
    kind: Callable[[Image.Image], Any],
) -> Operation:
    return lambda picture, strength, _: kind(picture).enhance(0.1 + 1.8 * strength)


_OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, _, __: picture,
    "autocontrast": lambda picture, _, __: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _, __: ImageOps.equalize(picture),
    "solarize": lambda picture, strength, _: ImageOps.solarize(picture, round(256 * max(0.0, 1 - strength))),
    "posterize": lambda picture, strength, _: ImageOps.posterize(picture, max(1, 8 - round(4 * strength))),
    "rotate": _rotated,
    "shear_x": lambda picture, strength, sign: _moved(picture, (1, sign * 0.3 * strength, 0, 0, 1, 0)),
    "shear_y": lambda picture, strength, sign: _moved(picture, (1, 0, 0, sign * 0.3 * strength, 1, 0)),
    "translate_x": lambda picture, strength, sign: _moved(
        picture, (1, 0, sign * 0.45 * strength * picture.width, 0, 1, 0)
    ),
    "translate_y": lambda picture, strength, sign: _moved(
        picture, (1, 0, 0, 0, 1, sign * 0.45 * strength * picture.height)
    ),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`layers` operations on every image, each at `magnitude`, from 0 (weak) over 10 on."""

    layers: int
    magnitude: float

    def __call__(self, image: Array, rng: np.random.Generator) -> Array:
        """uint8 (H, W, C) → the same shape."""
        grey = image.shape[-1] == 1
        picture = Image.fromarray(image[..., 0] if grey else image)
        for name in rng.choice(list(_OPERATIONS), self.layers):
            picture = _OPERATIONS[name](picture, self.magnitude / _LARGEST, rng.choice((-1.0, 1.0)))
        return np.asarray(picture).reshape(image.shape)
