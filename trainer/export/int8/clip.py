"""The range of a tensor's codes: the extremes that were seen, or less of them where finer steps are worth the clipped outliers.

The share is the one of least squared error of the products themselves, not of the tensor (as ranges by MSE are chosen in
arXiv:2106.08295, §3.1): an outlier that meets a large weight is kept.
"""

from collections.abc import Sequence

import numpy as np

from trainer.export.graph import Array
from trainer.export.int8.observe import Seen
from trainer.export.int8.rounding import rounded_activations, rounded_kernel

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def best_range(seen: Seen, kernels: Sequence[Array]) -> tuple[float, float]:
    """Least and greatest value of the codes of what feeds products with `kernels` (C, N)."""
    rounded = np.concatenate([rounded_kernel(kernel) for kernel in kernels], axis=1)
    least, greatest = float(seen.least.min()), float(seen.greatest.max())

    def error(share: float) -> float:
        missed = rounded_activations(seen.rows, share * least, share * greatest) - seen.rows
        return float(np.square(missed @ rounded).sum())

    share = min(_SHARES, key=error)
    return share * least, share * greatest


def mean_missed(seen: Seen, kernel: Array, bounds: tuple[float, float]) -> Array:
    """What eight bits take from a product with `kernel` (C, N) on average, (N,): its bias gives it back.

    Bias correction (arXiv:1906.04721, §4.2), measured on rows of real activations.
    """
    missed = seen.rows @ kernel - rounded_activations(seen.rows, *bounds) @ rounded_kernel(kernel)
    mean: Array = missed.mean(axis=0)
    return mean
