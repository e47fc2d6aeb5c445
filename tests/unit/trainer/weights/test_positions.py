"""Positions are zoomed as the original does it: corners stay corners, in between is linear."""

import numpy as np
import pytest

from trainer.weights.positions import resize, square_grid


def table(rows: int, columns: int, prefix: int = 1) -> np.ndarray:
    """Positions that grow evenly to the right and downwards, which linear interpolation continues exactly."""
    down, right = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    grid = np.stack([down, right], axis=-1).reshape(1, -1, 2)
    return np.concatenate([np.full((1, prefix, 2), 9.0), grid], axis=1).astype(np.float32)


@pytest.mark.parametrize("new", [(8, 8), (3, 3), (6, 10), (2, 7), (4, 4)])
def test_an_even_slope_stays_one_from_corner_to_corner(new: tuple[int, int]) -> None:
    resized = resize(table(4, 4), 1, (4, 4), new)
    np.testing.assert_allclose(resized, table(*new), atol=1e-6)  # float32 of numbers up to 1
    assert resized.dtype == np.float32


def test_tokens_in_front_are_kept() -> None:
    assert (resize(table(4, 4, prefix=2), 2, (4, 4), (5, 5))[0, :2] == 9).all()


def test_values_between_are_linear_and_not_cubic() -> None:
    spike = np.zeros((1, 9, 1), np.float32)
    spike[0, 4] = 1  # the middle of 3 x 3
    np.testing.assert_allclose(resize(spike, 0, (3, 3), (5, 5))[0, 10:15, 0], [0, 0.5, 1, 0.5, 0], atol=1e-6)


def test_a_grid_that_is_not_square_can_be_the_origin() -> None:
    np.testing.assert_allclose(resize(table(2, 6), 1, (2, 6), (4, 3)), table(4, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("patches", "grid"), [(196, (14, 14)), (1, (1, 1)), (195, None), (0, None), (-1, None)]
)
def test_only_squares_are_square(patches: int, grid: tuple[int, int] | None) -> None:
    assert square_grid(patches) == grid
