"""Small Vision Transformers with random weights, smooth random images, and checkpoints of them: no training, no data set.

Fresh parameters will not do for tests of pruning and export: the head starts at zero, biases and LayerNorms at constants, so
that a wrong answer could look right. Here every array is perturbed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from serving import preprocess
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, description
from trainer.compress import streams
from trainer.compress.plan import Layer, Plan, identity
from trainer.data.datasets import open_dataset
from trainer.description import Block, Classifier, Model, ViT, uniform
from trainer.models.build import Params, bind, flatten, param_shapes, unflatten

Array = np.ndarray[Any, np.dtype[Any]]

# 4 patches of 4 x 4 grey pixels, 16 channels, 2 blocks of 2 heads with 8 dims each and 32 neurons.
SMALL = ViT((8, 8), 1, 4, 16, uniform(2, 2, 8, 32), 10, "gap", "erf")
# What pruning leaves: no two blocks alike, one without attention, one without an MLP.
UNEVEN = dataclasses.replace(
    SMALL,
    blocks=(Block(2, 4, 8, 24), Block(1, 8, 3, 0), Block(0, 0, 0, 40), Block(3, 2, 5, 7)),
    pooling="cls",
)
DIGITS_SPEC = PreprocessSpec(color="L", height=8, width=8, mean=(127.5,), std=(127.5,), method="bilinear")
DIGITS = tuple("0123456789")


def random_params(model: Model, seed: int = 0) -> Params:
    """Parameters of the size that trained ones have: kernels scaled by their inputs, norms near 1, biases that matter."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for name, leaf in flatten(param_shapes(model)).items():
        noise = rng.normal(size=leaf.shape)
        if name.endswith("scale"):
            value = 1 + 0.2 * noise
        elif name.endswith("kernel"):
            all_but_last = len(leaf.shape) == 4 or name.endswith(
                "out/kernel"
            )  # convolutions, and heads joined
            inputs = leaf.shape[:-1] if all_but_last else leaf.shape[:1]
            value = noise / np.sqrt(np.prod(inputs))
        else:
            value = 0.3 * noise
        leaves[name] = value.astype(np.float32)
    if "head/kernel" in leaves:
        # Class scores that differ between images by more than between classes, as those of a trained model do.
        leaves["head/kernel"] *= 3
    return unflatten(leaves)


def smooth_images(model: Classifier, count: int, seed: int = 0) -> Array:
    """Normalised images (count, H, W, C) of a few slow waves and a little noise: neighbours are alike, as in pictures."""
    rng = np.random.default_rng(seed)
    height, width = model.image_size
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    images = 0.05 * rng.normal(size=(count, height, width, model.channels))
    for _ in range(4):
        down, across, phase = rng.uniform(0, 2 * np.pi, (3, count, 1, 1, model.channels))
        images += 0.7 * np.sin(down * rows + across * columns + phase)
    return images.astype(np.float32)


def logits(model: ViT, params: Params, images: Array) -> Array:
    """What the live model says."""
    return streams.logits(model, params, images, 64)


def merging(model: ViT, *counts: int) -> ViT:
    """`model` whose blocks merge so many pairs of tokens, from the first on."""
    return description.merging(model, (*counts, *(0,) * (len(model.blocks) - len(counts))))


def cut_evenly(teacher: ViT, heads: int, dim: int, neurons: int) -> Plan:
    """The plan that keeps the first heads and neurons of every block, and `dim` dims of each head."""
    return Plan(
        tuple(
            Layer(index, tuple(range(heads)), dim, dim, tuple(range(neurons)))
            for index in range(len(teacher.blocks))
        )
    )


def with_layer(teacher: ViT, position: int, **changes: Any) -> Plan:
    """The plan that keeps everything but for `changes` to one layer."""
    layers = list(identity(teacher).layers)
    layers[position] = dataclasses.replace(layers[position], **changes)
    return Plan(tuple(layers))


def able_params() -> Params:
    """Random parameters of SMALL with a head that is fitted to the digits: right about half of the time."""
    params, data = random_params(SMALL), open_dataset("digits").train
    images = preprocess.normalise(data.images, DIGITS_SPEC)
    headless = {name: value for name, value in params.items() if name != "head"}
    features = np.asarray(bind(dataclasses.replace(SMALL, num_classes=0), headless)(images))
    seen = np.hstack([features, np.ones((len(features), 1), np.float32)])
    fitted = np.linalg.lstsq(seen, 10 * np.eye(10, dtype=np.float32)[data.labels], rcond=None)[0]
    return {**params, "head": {"kernel": fitted[:-1], "bias": fitted[-1]}}


def save_digits(
    workdir: Path,
    model: ViT = SMALL,
    params: Params | None = None,
    labels: tuple[str, ...] = DIGITS,
    spec: PreprocessSpec = DIGITS_SPEC,
    **changed: str,
) -> Params:
    """Writes a checkpoint for the embedded digits, of random weights unless given, and returns its parameters.

    `changed` stands in place of what its meta would say.
    """
    params = random_params(model) if params is None else params
    meta = {
        "stage": "trained",
        "dataset": "digits",
        "data_dir": "",
        "fingerprint": "of the digits",
        "config_text": 'dataset = "digits"\n',
        "config_hash": "c0ffee",
        "teacher_hash": "",
        "calibration_hash": "",
        **changed,
    }
    checkpoint.save_model(workdir, checkpoint.Card(model, spec, labels, meta), params)
    return params
