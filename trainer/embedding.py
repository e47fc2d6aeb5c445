"""Embeddings of images and texts by a pair, and what they tell: classes by their names, and which belongs to which.

Shapes: N examples, C classes, T tokens, E embedding; embeddings have length 1.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from serving import preprocess
from serving.command import UserError, progress
from serving.preprocess import PreprocessSpec
from trainer.data.pipeline import fitted
from trainer.data.source import Array, ImageSource
from trainer.description import TwoTowers
from trainer.models.build import Params, bind
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
        if weights.preprocess is None:
            raise UserError(f"{path} does not say how images are prepared for it")
        height, width = model.image.image_size
        spec = dataclasses.replace(weights.preprocess, height=height, width=width)
        return Embedder(model, weights.params, spec, batch)

    def images(self, source: ImageSource) -> Array:
        """(N, E), of all images of `source`."""
        whole = fitted(source, self.preprocess)

        @jax.jit
        def embed(params: Params, pixels: jax.Array) -> jax.Array:
            return bind(self.model, params).embed_images(pixels)

        parts = []
        with progress(len(source), "images") as bar:
            for rows, padded in self._batches(len(source)):
                pixels = np.stack([whole.image(int(row)) for row in padded])
                found = embed(self.params, preprocess.normalise(pixels, self.preprocess))
                parts.append(np.asarray(found)[: len(rows)])
                bar.advance(len(rows))
        return np.concatenate(parts)

    def texts(self, tokens: Array) -> Array:
        """(N, E), of texts (N, T)."""

        @jax.jit
        def embed(params: Params, texts: jax.Array) -> jax.Array:
            return bind(self.model, params).embed_texts(texts)

        parts = [
            np.asarray(embed(self.params, tokens[padded]))[: len(rows)]
            for rows, padded in self._batches(len(tokens))
        ]
        return np.concatenate(parts)

    def _batches(self, count: int) -> list[tuple[Array, Array]]:
        """(rows, the same filled up to a batch, so that one program serves all)."""
        whole = np.arange(count)
        starts = range(0, count, self.batch)
        return [(rows := whole[start : start + self.batch], np.resize(rows, self.batch)) for start in starts]


def classified(images: Array, classes: Sequence[Array], labels: Array) -> float:
    """Top-1 of images (N, E) by the likest class, each the mean of its sentences: `classes` holds (C, E) of each template."""
    means = np.mean(np.stack(classes), axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return float(((images @ means.T).argmax(axis=1) == labels).mean())


def recalls(images: Array, texts: Array) -> dict[str, float]:
    """How often what belongs to an image (N, E) is among the likest 1, 5 and 10 texts (N, E), and the other way round."""
    found: dict[str, float] = {}
    for name, asked, known in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        ranks = _ranks(asked, known)
        found |= {f"{name}_recall_{count}": float((ranks < count).mean()) for count in _RECALLS}
    return found


def _ranks(asked: Array, known: Array) -> Array:
    """(N,): how many are likelier than its own. What is exactly as like, as an equal text is, counts for it."""
    ranks = []
    for start in range(0, len(asked), _ROWS):
        rows = asked[start : start + _ROWS] @ known.T
        own = rows[np.arange(len(rows)), start + np.arange(len(rows))]
        ranks.append((rows > own[:, None] + 1e-6).sum(axis=1))
    return np.concatenate(ranks)
