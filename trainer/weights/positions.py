"""Position embeddings for another resolution: the rows in front kept, the grid of patches zoomed.

Corner-aligned and linear, as the original code fine-tunes (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2); other libraries
interpolate cubically between centres, so that resized models differ a little from theirs.
"""

import math

import numpy as np
import scipy.ndimage

from trainer.weights.forms import Array

Grid = tuple[int, int]


def square_grid(num_patches: int) -> Grid | None:
    """The square grid of so many patches, None where there is none."""
    side = math.isqrt(max(num_patches, 0))
    return (side, side) if side and side * side == num_patches else None


def resize(positions: Array, num_prefix: int, old: Grid, new: Grid) -> Array:
    """(1, prefix + old rows · columns, D) → (1, prefix + new rows · columns, D), float32."""
    if old == new:
        return positions
    grid = positions[0, num_prefix:].reshape(*old, -1)
    zoomed = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    return np.concatenate([positions[:, :num_prefix], zoomed.reshape(1, new[0] * new[1], -1)], axis=1)
