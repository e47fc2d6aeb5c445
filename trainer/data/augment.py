"""Augmentation of one image, uint8 (H, W, C) in and out, with a generator of its own so that any example can be made again."""

from typing import Any

import numpy as np

from trainer.data.source import Array

_SHIFT_FRACTION = 0.1  # of the side, to each direction


def shift(image: Array, rng: np.random.Generator) -> Array:
    """The image moved by up to a tenth of its sides; what comes in from outside is black."""
    height, width = image.shape[:2]
    rows, columns = max(1, round(height * _SHIFT_FRACTION)), max(1, round(width * _SHIFT_FRACTION))
    padded = np.pad(image, ((rows, rows), (columns, columns), (0, 0)))
    top, left = rng.integers(0, 2 * rows + 1), rng.integers(0, 2 * columns + 1)
    return padded[top : top + height, left : left + width]


def flip(image: Array, rng: np.random.Generator) -> Array:
    """The image, or with probability a half its mirror image."""
    return image[:, ::-1] if rng.random() < 0.5 else image


class Augment:
    """A policy by name as a picklable function of an example and a generator, as Grain's random_map wants it."""

    _POLICIES: dict[str, tuple[Any, ...]] = {"none": (), "shift": (shift,), "shift_flip": (shift, flip)}

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = example["image"]
        for transform in self._POLICIES[self._policy]:
            image = transform(image, rng)
        return {**example, "image": np.ascontiguousarray(image)}
