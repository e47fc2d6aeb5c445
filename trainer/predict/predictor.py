"""A model that is ready to answer: live from weights of any origin, or a bundle in the runtime that serves it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.bundle import MANIFEST, read_bundle
from serving.command import UserError, progress
from serving.preprocess import PreprocessSpec
from serving.runtime.select import open_runtime
from trainer.description import TextTower, TwoTowers
from trainer.export.live import live_model, live_tower
from trainer.export.onnx_writer import multiplier
from trainer.export.signature import IMAGE_TOWER, LOGITS, TEXT_TOWER
from trainer.predict.arrays import Array
from trainer.weights.load import Weights

Run = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What each kind of input becomes, by batch; None where the model does not take that kind.

    images: float32 (B, H, W, C) → logits (B, classes) or embeddings (B, E). texts: int32 (B, T) → embeddings (B, E).
    """

    images: Run | None
    texts: Run | None
    scale: float | None  # what dot products of embeddings are multiplied with, exp(t) of LiT
    image_shape: tuple[int, int, int] | None  # (H, W, C)
    text: TextTower | None
    preprocess: PreprocessSpec | None
    labels: tuple[str, ...]
    classifies: bool


def is_bundle(path: str) -> bool:
    """Whether `path` is a bundle's folder."""
    return (Path(path) / MANIFEST).is_file()


def live(weights: Weights) -> Predictor:
    """The model itself, compiled for this machine; float32 products are not shortened to TF32 or bfloat16."""
    model = weights.description
    if isinstance(model, TwoTowers):
        params = weights.params
        return Predictor(
            images=live_tower(model, params, IMAGE_TOWER),
            texts=live_tower(model, params, TEXT_TOWER),
            scale=multiplier(params),
            image_shape=(*model.image.image_size, model.image.channels),
            text=model.text,
            preprocess=weights.preprocess,
            labels=(),
            classifies=False,
        )
    if isinstance(model, TextTower):
        raise UserError("a text tower alone has no images to answer to; give the pair that it belongs to")
    return Predictor(
        images=live_model(model, weights.params),
        texts=None,
        scale=None,
        image_shape=(*model.image_size, model.channels),
        text=None,
        preprocess=weights.preprocess,
        labels=weights.class_names,
        classifies=model.num_classes > 0,
    )


def served(path: str, threads: int) -> Predictor:
    """A bundle in the runtime that its manifest names.

    Raises:
      UserError: for a damaged bundle, or a runtime that is not installed.
    """
    bundle = read_bundle(Path(path))
    model, file = bundle.model_file()
    runtime = open_runtime(file, model.runtime, threads)
    source, answer = bundle.manifest.inputs[0], bundle.manifest.outputs[0].name
    if bundle.preprocess is None:
        raise UserError(f"bundle {path} takes no images; ask a server for its embeddings of texts")
    return Predictor(
        images=lambda images: runtime.run({source.name: images})[answer],
        texts=None,
        scale=None,
        image_shape=(int(source.shape[1]), int(source.shape[2]), int(source.shape[3])),
        text=None,
        preprocess=bundle.preprocess,
        labels=tuple(bundle.manifest.labels),
        classifies=answer == LOGITS,
    )


def in_batches(run: Run, inputs: Array, size: int, label: str) -> Array:
    """The answers to all `inputs`, `size` at a time; the last batch is filled up, so that one compiled shape does."""
    size = min(size, len(inputs))
    answers = []
    with progress(len(inputs), label) as bar:
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            filled = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            answers.append(run(filled)[: len(batch)])
            bar.advance(len(batch))
    return np.concatenate(answers)
