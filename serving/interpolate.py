"""Resizing without antialias, as TensorFlow does it: each new pixel is read between its few neighbours in the old image.

Centres of pixels lie at half-integers, so new pixel i lies at (i + 1/2) · old/new - 1/2 in the old image. Images that shrink
alias: that is what some models were trained on, and Pillow, which antialiases whenever it shrinks, cannot make it. What the
definition leaves open is TensorFlow's (tf.image.resize, antialias=False), so that values may be cut to the same integers: positions
and weights are float32, rows are interpolated first, a cubic's weights come from a table of 1,024 steps, and its neighbours outside
of the image count for nothing. Against TensorFlow 2.21, 1.4 million values: linear the same to the last bit, cubic within 0.0002.
"""

import functools
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_STEPS = 1024  # of that table


def interpolate(image: Array, size: tuple[int, int], window: tuple[int, int, int, int], method: str) -> Array:
    """A window of the resized image: uint8 (H, W, C) → float32 (height, width, C). Only what the window shows is computed.

    Args:
      image: the pixels.
      size: height and width of the whole resized image.
      window: left, top, width and height of the part that is wanted, in pixels of the resized image.
      method: "bilinear", or "bicubic" (Keys' with a = -1/2), whose values may lie a little beyond 0 to 255.
    """
    left, top, width, height = window
    rows, down = _taps(image.shape[0], size[0], top, height, method)
    columns, across = _taps(image.shape[1], size[1], left, width, method)
    used, rows = np.unique(rows, return_inverse=True)
    narrow = _along(image[used], columns, across, 1)
    return _along(narrow, rows.reshape(down.shape), down, 0)


def _along(image: Array, neighbours: Array, weights: Array, axis: int) -> Array:
    """The weighted sum of neighbours along `axis`; neighbours and weights are (2 or 4, new length)."""
    values = [np.take(image, index, axis).astype(np.float32, copy=False) for index in neighbours]
    shares = np.expand_dims(weights, tuple(range(2, image.ndim - axis + 1)))
    if len(values) == 2:  # in this form, what lies between equals stays exactly equal
        return values[0] + (values[1] - values[0]) * shares[1]
    total = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:]):
        total += value * share
    return total


@functools.lru_cache(maxsize=256)  # a few KiB each; the images of a data set often have few sizes
def _taps(old: int, new: int, start: int, count: int, method: str) -> tuple[Array, Array]:
    """Which old pixels make each of `count` new ones from `start` on, and their weights: two arrays (2 or 4, count)."""
    index = np.arange(start, start + count, dtype=np.float32)
    position = (index + np.float32(0.5)) * (np.float32(old) / np.float32(new)) - np.float32(0.5)
    before = np.floor(position)
    fraction = position - before
    if method == "bilinear":
        offsets, weights = np.arange(2), np.stack([1 - fraction, fraction])
    else:
        offsets, weights = np.arange(-1, 3), _keys(np.rint(fraction * _STEPS) / _STEPS)
    wanted = before.astype(np.int64) + offsets[:, None]
    neighbours = wanted.clip(0, old - 1)
    if method == "bicubic":
        weights = weights * (wanted == neighbours)
        weights = weights / weights.sum(axis=0)
    return neighbours, weights.astype(np.float32)


def _keys(fraction: Array) -> Array:
    """Keys' cubic (1981) with a = -1/2: weights (4, n) of the pixels at distances 1 + f, f, 1 - f and 2 - f."""
    distance = np.stack([1 + fraction, fraction, 1 - fraction, 2 - fraction]).astype(np.float64)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, far)
