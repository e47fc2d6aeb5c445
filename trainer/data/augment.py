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

    def __init__(self, policy: str, seed: int, epochs: int, examples: int) -> None:
        self._augment, self._seed, self._epochs, self._examples = Augment(policy), seed, epochs, examples

    def __call__(self, position: int, example: dict[str, Any]) -> dict[str, Any]:
        """The view of `example` at its global `position` among endlessly repeated epochs, and `epoch`, which of them it is."""
        epoch = position // self._examples % self._epochs
        image = self.view(example["image"], int(example["index"]), epoch)
        return {**example, "image": image, "epoch": np.int64(epoch)}

    def view(self, image: Array, index: int, epoch: int) -> Array:
        """The view of the example at `index` in `epoch`, counted from 0 and below `epochs`."""
        return self._augment.view(image, np.random.default_rng((self._seed, index, epoch)))
