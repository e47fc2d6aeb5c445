"""Resizing without antialias: the definition, an oracle that shares no code with us, and values that TensorFlow gave."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from serving.interpolate import interpolate

SIZES = [
    ((5, 7), (3, 4)),
    ((5, 7), (11, 13)),
    ((28, 28), (224, 224)),
    ((37, 50), (22, 23)),
    ((64, 48), (16, 16)),
    ((1, 1), (4, 5)),
    ((2, 3), (9, 2)),
    ((6, 6), (6, 6)),
]
PIXELS = np.array([[0, 10, 100, 255, 40], [7, 200, 3, 90, 250], [1, 2, 250, 4, 5]], np.uint8)[..., None]
# tf.image.resize(PIXELS, size, method) of TensorFlow 2.21, which antialiases only when asked to.
TENSORFLOW: dict[tuple[str, tuple[int, int]], list[list[float]]] = {
    ("bilinear", (2, 3)): [
        [20.333332061767578, 75.75, 132.91668701171875],
        [18.833335876464844, 188.25, 52.66667175292969],
    ],
    ("bilinear", (4, 7)): [
        [0.0, 5.714285373687744, 35.71429443359375, 100.0, 210.7143096923828, 162.8571319580078, 40.0],
        [
            4.375,
            75.44642639160156,
            103.21427917480469,
            39.375,
            119.73216247558594,
            160.17857360839844,
            171.25,
        ],
        [4.75, 73.89285278320312, 117.14285278320312, 95.625, 68.57141876220703, 100.76786804199219, 158.125],
        [1.0, 1.5714285373687744, 72.85717010498047, 250.0, 74.28567504882812, 4.428571701049805, 5.0],
    ],
    ("bicubic", (2, 3)): [
        [14.053722381591797, 76.18248748779297, 129.03042602539062],
        [8.295581817626953, 201.0, 38.89788818359375],
    ],
    ("bicubic", (4, 7)): [
        [-0.39127984642982483, -7.09821081161499, 20.928625106811523, 105.06716918945312]
        + [245.3502197265625, 170.7938995361328, 15.385918617248535],
        [-3.227654457092285, 90.1454849243164, 119.72103118896484, 21.87558364868164]
        + [118.89575958251953, 180.3841552734375, 190.62124633789062],
        [-2.552150249481201, 83.69986724853516, 138.06427001953125, 88.38633728027344]
        + [45.77422332763672, 99.47122192382812, 180.67245483398438],
        [1.2117514610290527, -22.394254684448242, 64.45870208740234, 262.9029846191406]
        + [71.82646942138672, -21.219533920288086, -8.223430633544922],
    ],
}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def whole(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    return interpolate(image, size, (0, 0, size[1], size[0]), method)


@pytest.mark.parametrize(("method", "size"), TENSORFLOW, ids=str)
def test_values_are_tensorflows(method: str, size: tuple[int, int]) -> None:
    found = whole(PIXELS, size, method)[..., 0]
    wanted = np.array(TENSORFLOW[method, size], np.float32)
    if method == "bilinear":
        np.testing.assert_array_equal(found, wanted, strict=True)
    else:  # sums of sixteen products, which TensorFlow adds in another order: a few units in the last place of 255
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_linear_values_are_those_of_scipy_at_half_pixel_positions(
    old: tuple[int, int], new: tuple[int, int], channels: int
) -> None:
    image = noise(*old, channels)
    places = [(np.arange(n) + 0.5) * o / n - 0.5 for o, n in zip(old, new, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    wanted = [
        ndimage.map_coordinates(image[..., channel].astype(float), grid, order=1, mode="nearest")
        for channel in range(channels)
    ]
    found = whole(image, new, "bilinear")
    assert found.dtype == np.float32
    # Positions up to 64 in float32 are off by 4e-6, between pixels that differ by 255 at most.
    np.testing.assert_allclose(found, np.stack(wanted, axis=-1), rtol=0, atol=5e-3)


def keys(distance: float) -> float:
    near, d = abs(distance), abs(distance)
    if near < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if near < 2 else 0.0


def cubic_row(row: np.ndarray, count: int) -> list[float]:
    """Each new value straight from the definition: every old pixel weighed by its distance, weights made to sum to 1."""
    made = []
    for index in range(count):
        place = (index + 0.5) * len(row) / count - 0.5
        weights = [keys(place - old) for old in range(len(row))]
        made.append(float(np.dot(weights, row) / sum(weights)))
    return made


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 5), (3, 24), (24, 3), (1, 4), (7, 7)])
def test_cubic_values_are_those_of_keys_definition(old: int, new: int) -> None:
    row = noise(old)
    found = whole(row[None, :, None], (1, new), "bicubic")[0, :, 0]
    # The table of 1,024 steps moves a position by 1/2048; a cubic changes by 1.1 · 255 for each pixel that it goes on at most.
    np.testing.assert_allclose(found, cubic_row(row.astype(float), new), rtol=0, atol=0.2)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_an_image_of_the_same_size_stays_the_same(method: str) -> None:
    image = noise(6, 9, 3)
    np.testing.assert_array_equal(whole(image, (6, 9), method), image)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_a_window_is_a_part_of_the_whole(method: str) -> None:
    image = noise(30, 40, 3)
    part = interpolate(image, (21, 28), (5, 3, 16, 11), method)
    np.testing.assert_array_equal(part, whole(image, (21, 28), method)[3:14, 5:21])


def test_shrinking_without_antialias_skips_pixels_and_does_not_mean_them() -> None:
    stripes: Any = np.zeros((1, 64, 1), np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255  # the two middle ones of each four, where every new centre lies
    assert set(np.unique(whole(stripes, (1, 16), "bilinear"))) == {255.0}
