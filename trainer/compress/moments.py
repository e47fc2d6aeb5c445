"""First and second moments of activations, gathered batch by batch, and the least squares that need nothing else.

Products are formed on the device in float32, about the mean of the first batch: a variance far below the squared mean would
drown in rounding otherwise. Sums over batches are kept in float64 on the host.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from serving.command import UserError
from trainer.compress import nearest

Array = np.ndarray[Any, np.dtype[Any]]
# Fewer samples than this per dimension do not determine a covariance (notes on calibration: refuse).
ROWS_PER_DIM = 4


@jax.jit
def _products(
    inputs: jax.Array, targets: jax.Array, weights: jax.Array, origin: jax.Array, target_origin: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    exact = jax.lax.Precision.HIGHEST
    inputs, targets = inputs - origin, targets - target_origin
    weighted = weights[:, None] * inputs
    squared = jnp.matmul(weighted.T, inputs, precision=exact)
    crossed = jnp.matmul(weighted.T, targets, precision=exact)
    return squared, crossed, weighted.sum(axis=0), jnp.matmul(weights, targets, precision=exact)


_LEAST_VARIANCE = 1e-38  # of what is always 0, so that a system of nothing but zeros has a solution, 0


def damped(covariance: Array, damping: float) -> Array:
    """A covariance (A, A) with `damping` times its mean variance on the diagonal."""
    variance = max(float(np.trace(covariance)) / len(covariance), _LEAST_VARIANCE)
    return np.asarray(covariance + damping * variance * np.eye(len(covariance)))


def require_enough(what: str, rows: int, dims: int) -> None:
    """Raises a UserError when so many rows are too few for the covariance of `what`, which has `dims` dimensions."""
    if rows < ROWS_PER_DIM * dims:
        raise UserError(
            f"{what} has {dims} dimensions but calibration gives {rows} samples; at least {ROWS_PER_DIM * dims} are needed: "
            f"raise --config.calibration.examples to at least {nearest.at_least(ROWS_PER_DIM * dims / max(rows, 1))} times as many"
        )


@contextlib.contextmanager
def of_layer(index: int) -> Iterator[None]:
    """Names the layer in what is refused in here."""
    try:
        yield
    except UserError as error:
        raise UserError(f"layer {index}: {error}", error.exit_code) from error


class Moments:
    """Means and centred second moments of inputs (rows, A) and, where there are any, of targets (rows, T) against them."""

    def __init__(self) -> None:
        self.rows, self._weight = 0, 0.0
        self._sums: list[Array] | None = None
        self._origin: tuple[jax.Array, jax.Array] | None = None

    def add(self, inputs: jax.Array, targets: jax.Array | None = None, weights: Array | None = None) -> None:
        """Counts arrays (..., A) and (..., T); leading axes are rows, which count `weights` (of the first axis), or 1, each."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        wanted = flat[:, :0] if targets is None else targets.reshape(-1, targets.shape[-1])
        if self._origin is None:
            self._origin = flat.mean(axis=0), wanted.mean(axis=0)
        counts = np.ones(len(inputs), np.float32) if weights is None else weights
        each = np.repeat(counts, len(flat) // len(inputs))
        new = [np.asarray(value, np.float64) for value in _products(flat, wanted, each, *self._origin)]
        self._sums = new if self._sums is None else [old + more for old, more in zip(self._sums, new)]
        self.rows += flat.shape[0]
        self._weight += float(np.sum(each, dtype=np.float64))

    def _centred(self) -> tuple[Array, Array, Array, Array]:
        if self._sums is None or self._origin is None:
            raise ValueError("no rows were added")
        origin, target_origin = (np.asarray(value, np.float64) for value in self._origin)
        squared, crossed, inputs, targets = (value / self._weight for value in self._sums)
        covariance = squared - np.outer(inputs, inputs)
        if not (np.isfinite(covariance).all() and np.isfinite(crossed).all()):
            raise UserError(
                "what the model makes of the calibration images holds NaN or infinity; compression needs finite activations: "
                "check the checkpoint's weights, which may be too large for float32 products, and the images"
            )
        return covariance, crossed - np.outer(inputs, targets), inputs + origin, targets + target_origin

    def _dims(self) -> int:
        return 0 if self._sums is None else len(self._sums[2])

    def enough(self, dims: int | None = None) -> bool:
        """Whether there are rows enough to trust the covariance of `dims` inputs, or of all."""
        return self._sums is not None and self.rows >= ROWS_PER_DIM * (dims or self._dims())

    def require_enough(self, what: str, dims: int | None = None) -> None:
        """Raises a UserError when the calibration set is too small for `what`, which reads `dims` inputs, or all."""
        if not self.enough(dims):
            require_enough(what, self.rows, dims or self._dims())

    def covariance(self) -> tuple[Array, Array]:
        """(covariance (A, A), mean (A,)) of the inputs."""
        covariance, _, mean, _ = self._centred()
        return covariance, mean

    def linear(self, damping: float) -> Array:
        """Kernel (A, T) of the least-squares fit without bias, with `damping` times the mean square on the diagonal."""
        covariance, crossed, mean, target_mean = self._centred()
        squares, products = covariance + np.outer(mean, mean), crossed + np.outer(mean, target_mean)
        kernel = np.linalg.solve(damped(squares, damping), products)
        return kernel.astype(np.float32)

    def ridge(self, damping: float, used: Array | None = None) -> tuple[Array, Array]:
        """Kernel (A, T) and bias (T,) of the affine least-squares fit, with `damping` times the mean variance on the diagonal.

        Where `used` is given, the fit is on those inputs alone, and A is how many they are.
        """
        covariance, crossed, mean, target_mean = self._centred()
        if used is not None:
            covariance, crossed, mean = covariance[np.ix_(used, used)], crossed[used], mean[used]
        kernel = np.linalg.solve(damped(covariance, damping), crossed)
        return kernel.astype(np.float32), (target_mean - mean @ kernel).astype(np.float32)
