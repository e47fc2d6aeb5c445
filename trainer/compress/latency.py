"""How long models take in the runtime that will serve them, measured on this machine.

Time does not depend on what the weights are, so a description is enough: its graph is written with drawn weights. A machine is
never quiet: models are timed in turns, a short round of each, and the median of the rounds' medians counts; how far the rounds
lie apart is told with it.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from serving.command import progress
from serving.runtime.base import Runtime
from serving.runtime.select import open_runtime
from trainer.description import ViT
from trainer.export.int8_weights import store_int8_weights
from trainer.export.onnx_writer import write_onnx
from trainer.export.quantize import quantize_int8
from trainer.export.signature import IMAGES
from trainer.models.build import Params, flatten, param_shapes, unflatten

_ROUNDS, _RUNS = 9, 12  # 108 runs of each model
_WARM_UP = 3
_AT_ONCE = 16  # models in memory


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under what a latency holds: images in a call, threads of the runtime, and `fp32`, `int8` or `int8_weights`."""

    batch: int
    threads: int
    precision: str


@dataclasses.dataclass(frozen=True)
class Timing:
    """One model's time in a call, ms: median of the rounds' medians, 99th percentile of all runs, and the spread of the rounds.

    `spread` is the distance between the quartiles of the rounds' medians, as a fraction of `p50_ms`.
    """

    p50_ms: float
    p99_ms: float
    spread: float


Timer = Callable[[Sequence[ViT]], list[Timing]]


def all_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timer(setting: Setting) -> Timer:
    """Times models on this machine under `setting`."""

    def timed(models: Sequence[ViT]) -> list[Timing]:
        found: list[Timing] = []
        with progress(len(models), "timing") as bar:
            for start in range(0, len(models), _AT_ONCE):
                some = models[start : start + _AT_ONCE]
                found += _timed(some, setting)
                bar.advance(len(some))
        return found

    return timed


def _timed(models: Sequence[ViT], setting: Setting) -> list[Timing]:
    runtimes = [
        open_runtime(graph_bytes(model, setting.precision), "onnxruntime", setting.threads)
        for model in models
    ]
    inputs = [_images(model, setting.batch) for model in models]
    taken_ms = np.empty((len(models), _ROUNDS, _RUNS))
    for turn in range(_ROUNDS):
        for index, (runtime, images) in enumerate(zip(runtimes, inputs, strict=True)):
            taken_ms[index, turn] = _round_ms(runtime, images)
    for runtime in runtimes:
        runtime.close()
    return [summary(rounds) for rounds in taken_ms]


def time_file(content: bytes, model: ViT, setting: Setting) -> Timing:
    """The time of an exported file itself, `model`'s, on this machine under `setting`; its precision is the file's own."""
    runtime = open_runtime(content, "onnxruntime", setting.threads)
    images = _images(model, setting.batch)
    taken_ms = np.array([_round_ms(runtime, images) for _ in range(_ROUNDS)])
    runtime.close()
    return summary(taken_ms)


def _round_ms(runtime: Runtime, images: np.ndarray) -> list[float]:
    """A round's runs, ms, after a few that bring the caches back."""
    taken = []
    for _ in range(_WARM_UP + _RUNS):
        began_s = time.perf_counter()
        runtime.run({IMAGES: images})
        taken.append((time.perf_counter() - began_s) * 1e3)
    return taken[_WARM_UP:]


def summary(taken_ms: np.ndarray) -> Timing:
    """What (rounds, runs) times in ms come to."""
    medians = np.median(taken_ms, axis=1)
    low, middle, high = (float(value) for value in np.percentile(medians, [25, 50, 75]))
    return Timing(middle, float(np.percentile(taken_ms, 99)), (high - low) / middle)


def graph_bytes(model: ViT, precision: str) -> bytes:
    """The exported file of a model of that description, with drawn weights: as large and as fast as any."""
    graph = write_onnx(model, drawn(model))
    if precision == "int8":
        graph = quantize_int8(graph, _images(model, 2))
    if precision == "int8_weights":
        graph = store_int8_weights(graph)
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
    shape = (count, *model.image_size, model.channels)
    return np.random.default_rng(1).standard_normal(shape, np.float32)
