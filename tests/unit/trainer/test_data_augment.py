"""Augmentation of one image."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from tests.support import pictures
from trainer.data.augment import _SHIFT_FRACTION, Augment, _random_box, flip, inception_crop, shift
from trainer.data.randaugment import _OPERATIONS, RandAugment
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


@pytest.mark.parametrize("policy", ["none", "shift", "shift_flip", "light", "medium", "strong"])
def test_augmentation_depends_on_its_generator_alone(policy: str) -> None:
    example = {"image": _image(16, 16), "label": 3}
    first, again, other = (
        Augment(policy, (16, 16))(example, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert np.array_equal(first["image"], again["image"])
    assert np.array_equal(first["image"], other["image"]) == (policy == "none")
    assert (first["label"], first["image"].shape, first["image"].dtype) == (3, (16, 16, 1), np.uint8)


def test_augmentation_leaves_the_source_alone() -> None:
    image = _image(16, 16)
    Augment("shift_flip", (16, 16))({"image": image}, np.random.default_rng(1))["image"][:] = 0
    assert np.array_equal(image, _image(16, 16))


def _photograph() -> Array:
    return np.asarray(pictures.crop("flower", 1, (90, 60)))


def test_a_random_crop_has_its_size_and_lies_within_the_image() -> None:
    image, rng = _photograph(), np.random.default_rng(0)
    assert {inception_crop(image, rng, (16, 24)).shape for _ in range(20)} == {(16, 24, 3)}
    boxes = np.array([_random_box(60, 90, rng) for _ in range(2000)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 90).all()
    assert (boxes[:, 3] <= 60).all()
    share, ratio = wide * high / 5400, wide / high
    assert 0.04 < share.min() < 0.08
    assert share.max() > 0.85
    assert ratio.min() == pytest.approx(3 / 4, rel=0.1)
    assert ratio.max() == pytest.approx(4 / 3, rel=0.1)
    assert _random_box(1, 400, rng) == (0, 0, 400, 1)  # nothing of such a ratio lies in it


def test_a_crop_of_the_whole_image_is_what_pillow_resizes() -> None:
    image = _photograph()
    whole = inception_crop(image, _whole_image(), (20, 30))
    expected = Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(whole, np.asarray(expected))


def _whole_image() -> np.random.Generator:
    class Fixed(np.random.Generator):
        def uniform(self, low: float = 0.0, high: float = 1.0, *_: object) -> float:  # type: ignore[override]
            return high if low > 0 else math.log(1.5)  # all of the area, and three to two

    return Fixed(np.random.PCG64(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_of_randaugment_keeps_the_form_and_most_change_pixels(channels: int) -> None:
    image = _photograph()[..., :channels]
    changed = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        name = np.random.default_rng(seed).choice(list(_OPERATIONS), 1)[0]
        seen = RandAugment(1, 15)(image, rng)
        assert (seen.shape, seen.dtype) == (image.shape, np.uint8)
        if not np.array_equal(seen, image):
            changed.add(name)
    unchanged = set(_OPERATIONS) - changed
    assert "identity" in unchanged
    assert unchanged <= ({"identity", "autocontrast"} | ({"color"} if channels == 1 else set()))


def test_randaugment_of_ones_own_stands_in_place_of_the_policys() -> None:
    image = _photograph()

    def views(policy: str, randaug: str = "") -> list[bytes]:
        augment = Augment(policy, (16, 16), randaug)
        return [augment.view(image, np.random.default_rng(seed)).tobytes() for seed in range(8)]

    assert views("light", "2,10") == views("medium")
    assert views("medium", "2,20") == views("strong")
    assert views("light") != views("medium")
