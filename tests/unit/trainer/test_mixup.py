"""Mixup: the same pairs on any number of processes, one share a step, images and labels alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from trainer import mixup


def _pairs(batch: int, shares: int) -> dict[int, int]:
    """Position in the data → that of the partner, where reader i of `shares` holds every example i, i + shares, …"""
    positions = np.concatenate([np.arange(share, batch, shares) for share in range(shares)])
    return dict(zip(positions.tolist(), positions[mixup.partners(batch, shares)].tolist(), strict=True))


@pytest.mark.parametrize("shares", [1, 2, 3, 4, 12])
def test_any_number_of_processes_mixes_the_same_examples(shares: int) -> None:
    assert _pairs(12, shares) == {position: (position + 1) % 12 for position in range(12)}


def test_the_share_is_that_of_seed_and_step() -> None:
    shares = [float(mixup.ratio(seed, step, 0.4)) for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert shares[0] == shares[1]
    assert len(set(shares)) == 3


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_drawn_from_beta(alpha: float) -> None:
    drawn = np.array([mixup.ratio(3, step, alpha) for step in range(400)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    # The mean of 400 has a deviation of at most 0.023, their variance one of about a twentieth of itself up to 0.01.
    assert drawn.mean() == pytest.approx(0.5, abs=4 * (variance / 400) ** 0.5)
    assert drawn.var() == pytest.approx(variance, rel=0.25)


def test_every_row_is_blended_with_its_partner() -> None:
    rows = jnp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    expected = 0.75 * rows + 0.25 * np.roll(rows, -1, axis=0)
    np.testing.assert_allclose(mixup.mixed(rows, mixup.partners(4, 1), jnp.float32(0.75)), expected)
