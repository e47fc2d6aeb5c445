"""The head of a cut model: the one whose predictions are nearest to the teacher's, in KL, on calibration images without labels.

Least squares on logits tell a sure answer from a surer one as if it mattered, and KL does not. The head's KL is convex: Newton's
method (iteratively reweighted least squares; Bishop 2006, 4.3.3 and 4.3.4) finds the one optimum in a few steps, held near the
least-squares head by a ridge, as there are few images. Newton-CG is Hessian-free, so that many classes cost no large matrix.

Shapes: N images, w width, C classes.
"""

import numpy as np
import scipy.optimize
import scipy.special

from trainer.compress.moments import Array

_SPEAK = 20.0  # images for the least-squares head: what few images say against it counts little
_AT_LEAST = 0.1  # of the weight of the average image
_NEAR = 1e-4  # mean step at which the optimum is reached


def nearest(features: Array, logits: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """The head near (`kernel` (w, C), `bias` (C,)) that predicts from `features` (N, w) what the teacher's `logits` (N, C) do."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = max(float(np.sqrt(features.var(axis=0, dtype=np.float64).mean())), np.finfo(np.float32).tiny)
    inputs = np.hstack([(features - mean) / deviation, np.ones((len(features), 1))])
    start = np.vstack([kernel * deviation, bias + mean @ kernel]).astype(np.float64)
    damping = _SPEAK / len(inputs)  # of a change in units of the features' deviation
    wanted = scipy.special.softmax(logits.astype(np.float64), axis=1)

    def loss(flat: Array) -> tuple[float, Array]:
        head = flat.reshape(start.shape)
        said, away = scipy.special.log_softmax(inputs @ head, axis=1), head - start
        value = -np.sum(wanted * said) / len(inputs) + damping / 2 * np.sum(np.square(away))
        gradient = inputs.T @ (np.exp(said) - wanted) / len(inputs) + damping * away
        return float(value), gradient.ravel()

    def curvature(flat: Array, direction: Array) -> Array:
        chances = scipy.special.softmax(inputs @ flat.reshape(start.shape), axis=1)
        moved = chances * (inputs @ direction.reshape(start.shape))
        moved -= chances * moved.sum(axis=1, keepdims=True)
        return np.asarray((inputs.T @ moved / len(inputs)).ravel() + damping * direction)

    found = scipy.optimize.minimize(
        loss, start.ravel(), jac=True, hessp=curvature, method="Newton-CG", options={"xtol": _NEAR}
    )
    head = found.x.reshape(start.shape)
    kernel = head[:-1] / deviation
    return kernel.astype(np.float32), (head[-1] - mean @ kernel).astype(np.float32)


def doubt(logits: Array) -> Array:
    """How much each image (N,) counts in a fit, 1 on average: of an answer without doubt little can change.

    The root of 1 - Σ p², the trace of the Fisher information at the logits (N, C); no image counts less than a tenth.
    """
    chances = scipy.special.softmax(logits.astype(np.float64), axis=1)
    root = np.sqrt(np.maximum(1 - np.sum(np.square(chances), axis=1), 0))
    mean = root.mean()
    spread = root / mean if mean > 0 else np.ones_like(root)
    return np.asarray(_AT_LEAST + (1 - _AT_LEAST) * spread, np.float32)
