import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from trainer.compress.moments import Array, Moments


def _data(rows: int = 400, seed: int = 0) -> tuple[Array, Array]:
    """Correlated inputs (rows, 6) with means of their own, and targets (rows, 3) that they explain in part."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    targets = inputs @ rng.normal(size=(6, 3)) + 0.5 * rng.normal(size=(rows, 3)) - 2
    return inputs.astype(np.float32), targets.astype(np.float32)


def _moments(inputs: Array, targets: Array | None = None, batch: int = 150) -> Moments:
    moments = Moments()
    for start in range(0, len(inputs), batch):
        rows = slice(start, start + batch)
        moments.add(jnp.asarray(inputs[rows]), None if targets is None else jnp.asarray(targets[rows]))
    return moments


def test_the_fit_without_damping_is_the_affine_least_squares_of_numpy() -> None:
    inputs, targets = _data()
    design = np.column_stack([inputs, np.ones(len(inputs))]).astype(np.float64)
    wanted = np.linalg.lstsq(design, targets.astype(np.float64), rcond=None)[0]
    kernel, bias = _moments(inputs, targets).ridge(0.0)
    # float32 products of O(1) numbers carry 1e-7, times the condition number of the covariance, about 1e3.
    np.testing.assert_allclose(kernel, wanted[:-1], atol=1e-4)
    np.testing.assert_allclose(bias, wanted[-1], atol=1e-4)


def test_damping_adds_a_fraction_of_the_mean_variance_and_leaves_the_bias_free() -> None:
    inputs, targets = _data()
    centred, wanted = inputs - inputs.mean(0, dtype=np.float64), targets - targets.mean(0, dtype=np.float64)
    covariance = centred.T @ centred / len(inputs)
    damped = covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6)
    expected = np.linalg.solve(damped, centred.T @ wanted / len(inputs))
    kernel, bias = _moments(inputs, targets).ridge(0.3)
    np.testing.assert_allclose(kernel, expected, atol=1e-4)  # as above
    # The mean prediction is the mean target, however strong the damping.
    np.testing.assert_allclose(inputs.mean(0) @ kernel + bias, targets.mean(0), atol=1e-4)


def test_covariance_and_mean_are_those_of_all_rows_whatever_the_batches() -> None:
    inputs, _ = _data()
    for batch in (7, 400):
        covariance, mean = _moments(inputs, batch=batch).covariance()
        np.testing.assert_allclose(covariance, np.cov(inputs.T.astype(np.float64), bias=True), atol=1e-5)
        np.testing.assert_allclose(mean, inputs.mean(0, dtype=np.float64), atol=1e-6)


def test_all_leading_axes_are_rows() -> None:
    inputs, targets = _data()
    moments = Moments()
    moments.add(jnp.asarray(inputs.reshape(20, 20, 6)), jnp.asarray(targets.reshape(20, 20, 3)))
    assert moments.rows == 400
    for found, wanted in zip(moments.ridge(0.01), _moments(inputs, targets).ridge(0.01), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)  # as above: the same sums in another order


def test_a_row_that_counts_twice_is_as_if_it_were_there_twice() -> None:
    rng = np.random.default_rng(4)
    inputs, targets = (rng.normal(size=(6, 5, dims)).astype(np.float32) for dims in (3, 2))
    weights = np.array([1, 2, 1, 2, 1, 1], np.float32)
    once, twice = Moments(), Moments()
    once.add(inputs, targets, weights)
    twice.add(*(np.repeat(given, weights.astype(int), axis=0) for given in (inputs, targets)))
    for found, wanted in zip(once.ridge(0.1), twice.ridge(0.1), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert once.rows == 30  # what determines a covariance is how many there are


def test_a_large_mean_does_not_drown_the_variance() -> None:
    inputs, targets = _data()
    shifted = inputs + np.float32(3000)
    kernel, _ = _moments(shifted, targets).ridge(0.01)
    wanted, _ = _moments(inputs, targets).ridge(0.01)
    # Adding 3000 rounds the inputs to 1e-4; without the origin, squares of 1e7 would leave no digit of a variance of 1.
    np.testing.assert_allclose(kernel, wanted, atol=2e-3)


def test_too_few_rows_are_refused_with_both_numbers() -> None:
    inputs, _ = _data(rows=23)
    with pytest.raises(
        UserError, match=r"the MLP has 6 dimensions.*23 samples.*at least 24.*calibration\.examples"
    ):
        _moments(inputs).require_enough("the MLP")
    _moments(_data(rows=24)[0]).require_enough("the MLP")


def test_moments_without_rows_are_never_enough() -> None:
    assert not Moments().enough()
    with pytest.raises(ValueError, match="no rows"):
        Moments().covariance()
