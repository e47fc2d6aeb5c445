"""Features of a frozen model, and what is learnt from them without touching it.

Shapes: N examples, D features.
"""

import dataclasses

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.source import Array, ImageSource
from trainer.description import Classifier, TextTower, TwoTowers
from trainer.models.build import Params, bind
from trainer.reading import read_images
from trainer.weights.load import Weights

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C: the larger, the less regularised
_ITERATIONS, _TEMPERATURE, _ROWS = 1000, 0.07, 512


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model without a head."""

    description: Classifier
    params: Params
    preprocess: PreprocessSpec


@dataclasses.dataclass(frozen=True)
class Features:
    """Of a split: values (N, D) and labels (N,)."""

    values: Array
    labels: Array


def frozen_model(weights: Weights, path: str) -> Frozen:
    """The model of `weights`, which came from `path`.

    Raises:
      UserError: when it takes no images alone, or does not say how they are prepared.
    """
    model = weights.description
    if isinstance(model, TwoTowers | TextTower):
        raise UserError(f"{path} is no model of images alone; a probe takes one")
    return Frozen(model, weights.params, weights.prepared(path, model.image_size))


def features(model: Frozen, source: ImageSource, batch: int, places: Array | None = None) -> Features:
    """What the head would read of the images at `places`, all for None."""

    @jax.jit
    def read(params: Params, pixels: jax.Array) -> jax.Array:
        return bind(model.description, params)(pixels)

    params = jax.device_put(model.params)

    def run(pixels: Array) -> Array:
        return np.asarray(read(params, pixels))

    values = read_images(run, source, model.preprocess, batch, "features", places)
    return Features(values, source.labels if places is None else source.labels[places])


def linear_probe(train: Features, validation: Features, test: Features) -> tuple[float, float]:
    """(test top-1 of a logistic regression, its strength C): the one of `_STRENGTHS` that is best on the validation images."""
    scale = StandardScaler().fit(train.values)
    tried = []
    for strength in _STRENGTHS:
        probe = LogisticRegression(C=strength, max_iter=_ITERATIONS)
        probe.fit(scale.transform(train.values), train.labels)
        tried.append((probe.score(scale.transform(validation.values), validation.labels), strength, probe))
    _, strength, best = max(tried, key=lambda one: one[0])
    return float(best.score(scale.transform(test.values), test.labels)), strength


def nearest_neighbours(train: Features, test: Features, count: int) -> float:
    """Test top-1 of a vote of the `count` training images with the likest features, weighted by exp(cos / 0.07)."""
    known, asked = (_unit(part.values) for part in (train, test))
    classes, right = int(train.labels.max()) + 1, 0
    for start in range(0, len(asked), _ROWS):
        likeness = asked[start : start + _ROWS] @ known.T
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        weights = np.exp(np.take_along_axis(likeness, nearest, axis=1) / _TEMPERATURE)
        votes = np.zeros((len(likeness), classes))
        rows = np.repeat(np.arange(len(likeness)), count)
        np.add.at(votes, (rows, train.labels[nearest].ravel()), weights.ravel())
        right += int((votes.argmax(axis=1) == test.labels[start : start + _ROWS]).sum())
    return right / len(asked)


def _unit(values: Array) -> Array:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
