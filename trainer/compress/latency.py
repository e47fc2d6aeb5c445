"""How long models take in the runtime that will serve them, measured on this machine.

Time does not depend on what the weights are, so a description is enough: its graph is written with drawn weights.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from serving.command import progress
from serving.timing.turns import Timing, drawn_images, time_models
from trainer.description import ViT, macs
from trainer.export.int8.write import in_precision
from trainer.export.onnx_writer import write_onnx
from trainer.export.signature import IMAGES
from trainer.models.build import Params, flatten, param_shapes, unflatten

_AT_ONCE = 16  # models in memory


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under what a latency holds: images in a call, threads of the runtime, and `fp32`, `int8` or `int8_weights`."""

    batch: int
    threads: int
    precision: str


Timer = Callable[[Sequence[ViT]], list[Timing]]


def timer(setting: Setting, seconds: float) -> Timer:
    """Times models on this machine under `setting`, every few of them for `seconds`.

    All are told at the pace that the machine had for the first of them: the largest model is timed among every few, and what it
    takes more or less there is taken off the others.
    """

    def timed(models: Sequence[ViT]) -> list[Timing]:
        found, largest, pace_ms = list[Timing](), max(models, key=macs), 0.0
        with progress(len(models), "timing") as bar:
            if len(models) <= _AT_ONCE:
                return _timed(models, setting, seconds)
            for start in range(0, len(models), _AT_ONCE):
                some = models[start : start + _AT_ONCE]
                *timings, reference = _timed([*some, largest], setting, seconds)
                pace_ms = pace_ms or reference.p50_ms
                found += [_slowed(one, pace_ms / reference.p50_ms) for one in timings]
                bar.advance(len(some))
        return found

    return timed


def _slowed(timing: Timing, factor: float) -> Timing:
    """The timing of a machine that is `factor` times slower."""
    times = (timing.p50_ms, timing.p99_ms, timing.median_ms)
    p50_ms, p99_ms, median_ms = (value * factor for value in times)
    return Timing(p50_ms, p99_ms, timing.spread, median_ms)


def _timed(models: Sequence[ViT], setting: Setting, seconds: float) -> list[Timing]:
    files = [graph_bytes(model, setting.precision) for model in models]
    inputs = [{IMAGES: _images(model, setting.batch)} for model in models]
    return time_models(files, inputs, setting.threads, seconds)


def time_files(files: Sequence[bytes], model: ViT, setting: Setting, seconds: float) -> list[Timing]:
    """The times of exported files, each in its own precision, under `setting`; their models take `model`'s images."""
    inputs = {IMAGES: _images(model, setting.batch)}
    return time_models(files, [inputs] * len(files), setting.threads, seconds)


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
