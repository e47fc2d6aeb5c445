"""How long models take in the runtime that will serve them, measured on this machine.

Time does not depend on what the weights are, so a description is enough: its graph is written with drawn weights.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from serving.timing.turns import Timing, drawn_images, time_models
from trainer.description import ViT
from trainer.export.int8.write import in_precision
from trainer.export.onnx_writer import write_onnx
from trainer.export.signature import IMAGES
from trainer.models.build import Params, flatten, param_shapes, unflatten


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under what a latency holds: images in a call, threads of the runtime, and `fp32`, `int8` or `int8_weights`."""

    batch: int
    threads: int
    precision: str


Timer = Callable[[Sequence[ViT]], list[Timing]]


def timer(setting: Setting, seconds: float) -> Timer:
    """Times models on this machine under `setting`, in turns, all of them together for `seconds`."""

    def timed(models: Sequence[ViT]) -> list[Timing]:
        files = [graph_bytes(model, setting.precision) for model in models]
        inputs = [{IMAGES: _images(model, setting.batch)} for model in models]
        return time_models(files, inputs, setting.threads, seconds)

    return timed


def one_by_one(timer: Timer) -> Timer:
    """`timer` for each model alone, as a server runs it: between others it takes a few percent more."""
    return lambda models: [timer([model])[0] for model in models]


def time_file(content: bytes, model: ViT, setting: Setting, seconds: float) -> Timing:
    """The time of an exported file, in its own precision, alone, under `setting`; it takes `model`'s images."""
    inputs = {IMAGES: _images(model, setting.batch)}
    (timing,) = time_models([content], [inputs], setting.threads, seconds)
    return timing


def graph_bytes(model: ViT, precision: str) -> bytes:
    """The exported file of a model of that description, with drawn weights: as large and as fast as any."""
    graph = in_precision(write_onnx(model, drawn(model)), precision, lambda: _images(model, 2))
    content: bytes = graph.SerializeToString()
    return content


def drawn(model: ViT) -> Params:
    """Weights of a trained model's size: a network of zeros or of overflows could be faster than a real one."""
    rng = np.random.default_rng(0)
    return unflatten({name: _array(rng, leaf.shape) for name, leaf in flatten(param_shapes(model)).items()})


def _array(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    inputs = max(math.prod(shape[:-1]), 1)
    return (rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(inputs))).astype(np.float32)


def _images(model: ViT, count: int) -> np.ndarray:
    return drawn_images((count, *model.image_size, model.channels))
