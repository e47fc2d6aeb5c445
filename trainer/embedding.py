"""Embeddings of images and texts by a pair, and what they tell: classes by their names, and which belongs to which.

Shapes: N examples, C classes, T tokens, E embedding; embeddings have length 1.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.source import Array, ImageSource
from trainer.description import TwoTowers
from trainer.models.build import Params, bind
from trainer.predict.predictor import in_batches
from trainer.reading import read_images
from trainer.weights.load import Weights

_RECALLS = (1, 5, 10)
_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A pair that is asked, `batch` images or texts at a time."""

    model: TwoTowers
    params: Params
    preprocess: PreprocessSpec
    batch: int

    @staticmethod
    def of(weights: Weights, path: str, batch: int) -> "Embedder":
        """The pair of `weights`, which came from `path`.

        Raises:
          UserError: when it is none, or does not say how images are prepared.
        """
        model = weights.description
        if not isinstance(model, TwoTowers):
            raise UserError(f"{path} is of kind {model.kind!r}; zero-shot takes an image-text pair")
        spec = weights.prepared(path, model.image.image_size)
        return Embedder(model, jax.device_put(weights.params), spec, batch)

    def images(self, source: ImageSource) -> Array:
        """(N, E), of all images of `source`."""

        @jax.jit
        def embed(params: Params, pixels: jax.Array) -> jax.Array:
            return bind(self.model, params).embed_images(pixels)

        def run(pixels: Array) -> Array:
            return np.asarray(embed(self.params, pixels))

        return read_images(run, source, self.preprocess, self.batch, "images")

    def texts(self, tokens: Array) -> Array:
        """(N, E), of texts (N, T)."""

        @jax.jit
        def embed(params: Params, texts: jax.Array) -> jax.Array:
            return bind(self.model, params).embed_texts(texts)

        def run(texts: Array) -> Array:
            return np.asarray(embed(self.params, texts))

        return in_batches(run, tokens, self.batch, "texts")


def classified(images: Array, classes: Sequence[Array], labels: Array) -> float:
    """Top-1 of images (N, E) by the likest class, each the mean of its sentences: `classes` holds (C, E) of each template."""
    means = np.mean(np.stack(classes), axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return float(((images @ means.T).argmax(axis=1) == labels).mean())


def recalls(images: Array, texts: Array, tokens: Array) -> dict[str, float]:
    """How often a text that belongs to an image (N, E) is among the likest 1, 5 and 10 texts (N, E), and the other way round.

    Pairs whose texts are the same `tokens` (N, T) belong to each other. What is exactly as like as the best of them, and does not
    belong, counts as likelier: a tower that says the same of everything finds nothing.
    """
    _, text = np.unique(tokens, axis=0, return_inverse=True)
    found: dict[str, float] = {}
    for name, asked, known in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        ranks = _ranks(asked, known, text.reshape(-1))
        found |= {f"{name}_recall_{count}": float((ranks < count).mean()) for count in _RECALLS}
    return found


def _ranks(asked: Array, known: Array, text: Array) -> Array:
    """(N,): how many that do not belong are as like as the likest that does, or likelier; `text` (N,) numbers the texts."""
    ranks = []
    for start in range(0, len(asked), _ROWS):
        like = asked[start : start + _ROWS] @ known.T
        belongs = text[start : start + _ROWS, None] == text[None, :]
        best = np.where(belongs, like, -np.inf).max(axis=1, keepdims=True)
        ranks.append((~belongs & (like >= best - 1e-6)).sum(axis=1))
    return np.concatenate(ranks)
