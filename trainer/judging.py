"""What a classifier answers to every example of a split, and what to make of it: top-1, top-5, classes, calibration, confusions.

Shapes: N examples, C classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from serving.preprocess import PreprocessSpec
from trainer.data.source import Array, ImageSource
from trainer.evaluation import asked
from trainer.models.build import Params
from trainer.step import Batch

BINS = 15  # of confidence, as Guo et al. have them
Table = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of each example (N,): label, first answer and confidence in it, whether the label is among five, loss in nats."""

    label: Array
    predicted: Array
    confidence: Array
    within5: Array
    loss: Array

    @property
    def right(self) -> Array:
        """(N,), true where the first answer is the label."""
        return np.asarray(self.predicted == self.label)


def answers(
    step: Callable[[Params, Batch], Batch],
    params: Params,
    source: ImageSource,
    spec: PreprocessSpec,
    batch: int,
    mesh: Mesh,
) -> Answers:
    """Asks `step` (`trainer.step.make_judge_step`) about all of `source`; the order is the same for all processes."""
    parts: dict[str, list[Array]] = {field.name: [] for field in dataclasses.fields(Answers)}
    for found in asked(step, params, source, spec, batch, mesh):
        said = {name: np.asarray(value) for name, value in found.items()}
        real = said.pop("mask") > 0
        for name, values in said.items():
            parts[name].append(values[real])
    return Answers(**{name: np.concatenate(values) for name, values in parts.items()})


def calibration_error(found: Answers) -> float:
    """Expected calibration error: confidence against accuracy in `BINS` bins (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    error = 0.0
    for row in reliability(found):
        error += row["examples"] / len(found.label) * abs(row["accuracy"] - row["confidence"])
    return error


def reliability(found: Answers) -> list[Table]:
    """Mean confidence, accuracy and examples of every bin that has any."""
    places = np.minimum((found.confidence * BINS).astype(int), BINS - 1)
    rows = []
    for place in range(BINS):
        inside = places == place
        if inside.any():
            confidence, accuracy = float(found.confidence[inside].mean()), float(found.right[inside].mean())
            rows.append({"confidence": confidence, "accuracy": accuracy, "examples": int(inside.sum())})
    return rows


def confusion(found: Answers, classes: int) -> Array:
    """(C, C): how many examples of each class (row) were answered with each (column)."""
    places = found.label.astype(np.int64) * classes + found.predicted
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def per_class(found: Answers, names: tuple[str, ...]) -> list[Table]:
    """Of each class: examples, how many of them were answered rightly, and how many answers with it were right; None of none."""
    table = confusion(found, len(names))
    rows = []
    for place, name in enumerate(names):
        own, said, right = int(table[place].sum()), int(table[:, place].sum()), int(table[place, place])
        rows.append(
            {
                "class": name,
                "examples": own,
                "accuracy": right / own if own else None,
                "precision": right / said if said else None,
            }
        )
    return rows
