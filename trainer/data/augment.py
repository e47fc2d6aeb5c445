"""Augmentation of one image, uint8 (H, W, C) in and out, with a generator of its own so that any example can be made again."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.data.source import Array

Transform = Callable[[Array, np.random.Generator], Array]
_SHIFT_FRACTION = 1 / 16  # of the side, to each direction


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


# The names stand in trainer.config.experiment too, which must not import numpy.
_POLICIES: dict[str, tuple[Transform, ...]] = {"none": (), "shift": (shift,), "shift_flip": (shift, flip)}


class Augment:
    """A policy by name as a picklable function of an example and a generator, as Grain's random_map wants it."""

    def __init__(self, policy: str) -> None:
        self._transforms = _POLICIES[policy]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = example["image"]
        for transform in self._transforms:
            image = transform(image, rng)
        return {**example, "image": image}
