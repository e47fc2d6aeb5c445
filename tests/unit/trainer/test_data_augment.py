"""Augmentation of one image."""

import itertools

import numpy as np
import pytest

from trainer.data.augment import _SHIFT_FRACTION, Augment, flip, shift
from trainer.data.source import Array


def _image(height: int, width: int) -> Array:
    """Neighbours differ, and none is black."""
    return (np.arange(height * width) % 255 + 1).astype(np.uint8).reshape(height, width, 1)


def _shifted_slowly(image: Array, down: int, right: int) -> Array:
    moved = np.zeros_like(image)
    for row, column in np.ndindex(image.shape[:2]):
        if 0 <= row + down < image.shape[0] and 0 <= column + right < image.shape[1]:
            moved[row + down, column + right] = image[row, column]
    return moved


def test_a_shift_moves_the_image_and_fills_with_black() -> None:
    image = _image(16, 32)
    rows, columns = (round(side * _SHIFT_FRACTION) for side in (16, 32))
    assert columns > rows > 0
    moves = itertools.product(range(-rows, rows + 1), range(-columns, columns + 1))
    possible = {_shifted_slowly(image, down, right).tobytes() for down, right in moves}
    rng = np.random.default_rng(0)
    # All moves are equally likely: after 25 draws for each, one is missing with a probability below 1e-9.
    assert {shift(image, rng).tobytes() for _ in range(25 * len(possible))} == possible


def test_an_image_of_one_pixel_can_be_shifted() -> None:
    results = {int(shift(_image(1, 1), np.random.default_rng(seed)).item()) for seed in range(100)}
    assert results == {0, 1}


def test_a_flip_mirrors_every_other_image_or_so() -> None:
    image, rng = _image(4, 6), np.random.default_rng(0)
    flipped = [not np.array_equal(flip(image, rng), image) for _ in range(400)]
    assert 140 < sum(flipped) < 260  # six standard deviations of a fair coin around 200
    assert np.array_equal(flip(image, _always(0.0)), image[:, ::-1])


def _always(value: float) -> np.random.Generator:
    class Fixed(np.random.Generator):
        def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
            return value

    return Fixed(np.random.PCG64(0))


@pytest.mark.parametrize("policy", ["none", "shift", "shift_flip"])
def test_augmentation_depends_on_its_generator_alone(policy: str) -> None:
    example = {"image": _image(16, 16), "label": 3}
    first, again, other = (Augment(policy)(example, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first["image"], again["image"])
    assert np.array_equal(first["image"], other["image"]) == (policy == "none")
    assert (first["label"], first["image"].shape, first["image"].dtype) == (3, (16, 16, 1), np.uint8)


def test_augmentation_leaves_the_source_alone() -> None:
    image = _image(16, 16)
    Augment("shift_flip")({"image": image}, np.random.default_rng(1))["image"][:] = 0
    assert np.array_equal(image, _image(16, 16))
