"""Augmentation of one image, uint8 (H, W, C) in and out, with a generator of its own so that any example can be made again."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.randaugment import RandAugment
from trainer.data.source import Array

Transform = Callable[[Array, np.random.Generator], Array]
_SHIFT_FRACTION = 1 / 16  # of the side, to each direction
_TRIES, _AREA, _RATIO = 10, (0.05, 1.0), 4 / 3  # of a random crop: draws, share of the image, width to height


def shift(image: Array, rng: np.random.Generator) -> Array:
    """The image moved by up to a sixteenth of its sides; what comes in from outside is black."""
    height, width = image.shape[:2]
    rows, columns = max(1, round(height * _SHIFT_FRACTION)), max(1, round(width * _SHIFT_FRACTION))
    down, right = rng.integers(-rows, rows + 1), rng.integers(-columns, columns + 1)
    moved = np.zeros_like(image)
    kept = image[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    top, left = max(0, down), max(0, right)
    moved[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
    return moved


def flip(image: Array, rng: np.random.Generator) -> Array:
    """The image, or with probability a half its mirror image."""
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image


def inception_crop(image: Array, rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """A random part of 5 to 100 % of the image and of 3:4 to 4:3 its width to its height, as (height, width) of `size`.

    Szegedy et al. 2015, arXiv:1409.4842, section 6, with the bounds that ViTs were trained with (arXiv:2106.10270).
    """
    height, width = image.shape[:2]
    box = _random_box(height, width, rng)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(*size, image.shape[-1])


def _random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels; the whole image where ten draws lie outside of it."""
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(-math.log(_RATIO), math.log(_RATIO)))
        wide, high = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if wide <= width and high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            return left, top, left + wide, top + high
    return 0, 0, width, height


@dataclasses.dataclass(frozen=True)
class _Policy:
    """What is done to an image: cropped from its full size or fitted to the model's first, moved, and changed at random."""

    crops: bool
    transforms: tuple[Transform, ...] = ()
    changes: tuple[Transform, ...] = ()


# The names stand in trainer.config.learning too, which must not import numpy.
_POLICIES: dict[str, _Policy] = {
    "none": _Policy(False),
    "shift": _Policy(False, (shift,)),
    "shift_flip": _Policy(False, (shift, flip)),
    "light": _Policy(True, (flip,)),
    "medium": _Policy(True, (flip,), (RandAugment(2, 10),)),
    "strong": _Policy(True, (flip,), (RandAugment(2, 20),)),
}


def crops(policy: str) -> bool:
    """Whether the images that `policy` takes are those of full size, and not fitted to the model's."""
    return _POLICIES[policy].crops


class Augment:
    """A policy by name as a picklable function of an example and a generator, as Grain's random_map wants it.

    Images come out in `size`, (height, width). `randaug`, "layers,magnitude" if any, stands in place of the policy's own.
    """

    def __init__(self, policy: str, size: tuple[int, int], randaug: str = "") -> None:
        chosen = _POLICIES[policy]
        crop = (functools.partial(inception_crop, size=size),) if chosen.crops else ()
        changes: tuple[Transform, ...] = chosen.changes
        if randaug:
            layers, magnitude = randaug.split(",")
            changes = (RandAugment(int(layers), float(magnitude)),)
        self._transforms: tuple[Transform, ...] = (*crop, *chosen.transforms, *changes)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "image": self.view(example["image"], rng)}

    def view(self, image: Array, rng: np.random.Generator) -> Array:
        """One view of `image`, drawn by `rng`."""
        for transform in self._transforms:
            image = transform(image, rng)
        return image


class RepeatedAugment:
    """A policy whose views come again: one depends on (seed, place of the example, epoch mod `epochs`) and on nothing else.

    So whatever was computed of a view serves every run that sees it, from any step on and on any number of processes.
    """

    def __init__(self, augment: Augment, seed: int, epochs: int, examples: int) -> None:
        self._augment, self._seed, self._epochs, self._examples = augment, seed, epochs, examples

    def __call__(self, position: int, example: dict[str, Any]) -> dict[str, Any]:
        """The view of `example` at its global `position` among endlessly repeated epochs, and `epoch`, which of them it is."""
        epoch = position // self._examples % self._epochs
        image = self.view(example["image"], int(example["index"]), epoch)
        return {**example, "image": image, "epoch": np.int64(epoch)}

    def view(self, image: Array, index: int, epoch: int) -> Array:
        """The view of the example at `index` in `epoch`, counted from 0 and below `epochs`."""
        return self._augment.view(image, np.random.default_rng((self._seed, index, epoch)))
