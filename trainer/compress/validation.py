"""What a model is worth on labelled images that nothing was fitted to: top-1, and its distance to the teacher."""

import dataclasses
from typing import Any

import numpy as np

from serving.preprocess import PreprocessSpec
from trainer.compress import streams
from trainer.compress.moments import Array
from trainer.data.source import ImageSource
from trainer.description import ViT
from trainer.interval import wilson
from trainer.models.build import Params

WORTH_COMPILING = 2_000  # images, from which a model is compiled as a whole, at sizes of its own
_PREPARED = 2_048  # images at a time: a whole split of large ones would not fit into memory
_COMPARED = 256  # embeddings at a time with all others


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """top1 and its 95 % interval, as fractions of `examples` images."""

    top1: float
    low: float
    high: float
    examples: int

    @staticmethod
    def of(top1: float, examples: int) -> "Accuracy":
        """With the interval of Wilson."""
        return Accuracy(top1, *wilson(top1, examples), examples)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def logits(model: ViT, params: Params, spec: PreprocessSpec, source: ImageSource, batch: int) -> Array:
    """What the model says of all images of `source`, (images, classes)."""
    run = streams.logits_of_whole if len(source) >= WORTH_COMPILING else streams.logits
    said = []
    for rows in streams.batches(len(source), batch * max(_PREPARED // batch, 1)):
        images = source.prepared(range(rows.start, rows.stop), spec)
        # A shorter last batch would be compiled anew; zeros fill it, and their answers are left out.
        filled = np.pad(images, [(0, -len(images) % batch), *[(0, 0)] * (images.ndim - 1)])
        said.append(run(model, params, filled, batch)[: len(images)])
    return np.concatenate(said)


def found_again(said: Array, teacher: Array) -> float:
    """The fraction of images whose embedding (images, E) is nearer to the teacher's of that image than to its of any other."""
    own, theirs = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (said, teacher))
    nearest = [(own[rows] @ theirs.T).argmax(axis=1) for rows in streams.batches(len(own), _COMPARED)]
    return float(np.mean(np.concatenate(nearest) == np.arange(len(own))))


def top1(model: ViT, params: Params, spec: PreprocessSpec, source: ImageSource, batch: int) -> float:
    """The fraction of `source` whose largest logit is its label."""
    found = logits(model, params, spec, source, batch)
    return float(np.mean(found.argmax(axis=-1) == source.labels))
