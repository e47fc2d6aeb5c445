"""In which order the inputs of a dense layer can be spared when those that stay are refitted: optimal brain surgeon.

Hassibi and Stork (1993), eq. 5, of whole inputs as in optimal brain compression (arXiv:2208.11580): with H⁻¹ the inverse second
moment of the inputs, input j costs ‖w_j‖² / [H⁻¹]_jj, after which H⁻¹ and the weights w are those of the inputs that stay. A
score that looks at each input alone does not see that of two alike ones either can go, and not both.

Shapes: F inputs, D outputs.
"""

from collections.abc import Iterable

import numpy as np

from serving.command import progress
from trainer.compress import streams
from trainer.compress.moments import Array, damped, of_layer
from trainer.compress.scores import Scores
from trainer.description import ViT
from trainer.models.build import Params

_STEPS = 256  # a large layer gives up several inputs a step: time grows with the cube of F otherwise


def ranks(covariance: Array, kernel: Array, ridge: float) -> Array:
    """For each of F inputs when it is given up, (F,): the last one has F - 1.

    `covariance` (F, F) is of the inputs, `kernel` (F, D) what reads them, `ridge` the damping as a fraction of the mean variance.
    """
    count = len(covariance)
    inverse = np.linalg.inv(damped(covariance, ridge))
    weights, left, given_up = np.asarray(kernel, np.float64), np.arange(count), list[int]()
    step = max(count // _STEPS, 1)
    while len(left):
        costs = np.sum(weights**2, axis=1) / np.diagonal(inverse)
        order = np.argsort(costs, kind="stable")
        gone, stay = order[:step], np.sort(order[step:])
        given_up.extend(left[gone])
        moved = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[np.ix_(gone, stay)]).T
        weights = weights[stay] - moved @ weights[gone]
        inverse = inverse[np.ix_(stay, stay)] - moved @ inverse[np.ix_(gone, stay)]
        left = left[stay]
    found = np.empty(count)
    found[given_up] = np.arange(count)
    return found


def neurons(
    teacher: ViT, params: Params, scores: Scores, walked: Iterable[Array], batch: int, ridge: float
) -> Scores:
    """`scores` with those of every MLP's neurons as `ranks`, on the teacher's stream `walked` (`streams.walk`)."""
    ranked = dict(scores)
    with progress(sum(block.mlp_dim > 0 for block in teacher.blocks), "neurons") as bar:
        for (index, branch, own), stream in zip(streams.branches(teacher, params), walked):
            if "mlp" in branch.parts:
                with of_layer(index):
                    hidden, _ = streams.hidden_moments(branch, own, stream, batch).covariance()
                order = ranks(hidden, own["mlp"]["fc2"]["kernel"], ridge)
                ranked[str(index)] = {**scores[str(index)], "mlp": order}
                bar.advance()
    return ranked
