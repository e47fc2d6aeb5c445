"""Mixup and CutMix: the same pairs on any number of processes, one share a step, images and labels alike."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest

from trainer import mixing


def _pairs(batch: int, readers: Sequence[int]) -> dict[int, int]:
    """Position in the data → that of the partner, where reader i of R holds every example i, i + R, … in the order of its rows."""
    count, each = len(set(readers)), batch // len(readers)
    coming = [iter(range(reader, batch, count)) for reader in range(count)]
    positions = np.array([next(coming[reader]) for reader in readers for _ in range(each)])
    return dict(zip(positions.tolist(), positions[mixing.partners(batch, readers)].tolist(), strict=True))


@pytest.mark.parametrize(
    "readers",
    [(0,), (0, 0), (0, 1), (1, 0), (0, 1, 2), (0, 0, 1, 1), (0, 1, 0, 1), (1, 0, 0, 1), tuple(range(12))],
)
def test_any_mesh_and_number_of_processes_mixes_the_same_examples(readers: tuple[int, ...]) -> None:
    assert _pairs(12, readers) == {position: (position + 1) % 12 for position in range(12)}


def test_the_share_is_that_of_seed_and_step() -> None:
    shares = [
        float(mixing.own_share(seed, step, (2, 2), 0.4, 0).mean())
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert shares[0] == shares[1]
    assert len(set(shares)) == 3


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_drawn_from_beta(alpha: float) -> None:
    drawn = np.array([mixing.own_share(3, step, (1, 1), alpha, 0).item() for step in range(400)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    # The mean of 400 has a deviation of at most 0.023, their variance one of about a twentieth of itself up to 0.01.
    assert drawn.mean() == pytest.approx(0.5, abs=4 * (variance / 400) ** 0.5)
    assert drawn.var() == pytest.approx(variance, rel=0.25)


def test_every_row_is_blended_with_its_partner() -> None:
    rows = jnp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    expected = 0.75 * rows + 0.25 * np.roll(rows, -1, axis=0)
    np.testing.assert_allclose(mixing.mixed(rows, mixing.partners(4, [0]), jnp.float32(0.75)), expected)


def test_cutmix_covers_a_rectangle_and_labels_count_its_pixels() -> None:
    shares = [np.asarray(mixing.own_share(0, step, (12, 16), 0, 1.0)) for step in range(40)]
    for share in shares:
        assert set(np.unique(share)) <= {0.0, 1.0}
        rows, columns = (np.flatnonzero((share[..., 0] == 0).any(axis=axis)) for axis in (1, 0))
        covered = np.ones((12, 16))
        covered[np.ix_(rows, columns)] = 0
        assert np.array_equal(covered, share[..., 0])
        assert all((np.diff(places) == 1).all() for places in (rows, columns))
    assert len({share.tobytes() for share in shares}) > 30
    assert 0.4 < np.mean(shares) < 0.85  # half would be covered, were none of it outside

    images, labels = jnp.arange(2 * 12 * 16.0).reshape(2, 12, 16, 1), jnp.eye(2)
    share = jnp.asarray(shares[0])
    seen = mixing.mixed(images, mixing.partners(2, [0]), share)
    assert np.array_equal(seen[0], np.where(shares[0] == 1, images[0], images[1]))
    np.testing.assert_allclose(
        mixing.mixed(labels, mixing.partners(2, [0]), share.mean())[0],
        [shares[0].mean(), 1 - shares[0].mean()],
    )


def test_with_both_each_has_half_of_the_steps() -> None:
    kinds = [len(np.unique(mixing.own_share(1, step, (8, 8), 0.8, 0.8))) for step in range(60)]
    blended = sum(kind == 1 for kind in kinds)  # a rectangle may cover all or nothing, too
    assert 15 < blended < 50
