"""What the exported file answers and how long it takes, in the runtime that will serve it."""

import math
import os
import statistics
import time

import numpy as np

from protos import bundle_pb2
from serving.command import Progress, progress
from serving.runtime.base import Runtime
from trainer.export.graph import Array
from trainer.export.samples import Samples
from trainer.export.signature import Signature
from trainer.interval import wilson

_SCORED_AT_ONCE, _TIMED = 32, 50  # images at a time for accuracy, and times that one input is timed


def measure(
    runtime: Runtime, names: Signature, samples: Samples, one: Array, threads: int
) -> list[bundle_pb2.Measurement]:
    """Accuracy on the scored samples, where there are any, and latency of `one` input (1, …)."""
    scored = samples.scored()
    batches = math.ceil(len(scored[0]) / _SCORED_AT_ONCE) if scored else 0
    with progress(batches + _TIMED, "measuring") as bar:
        accuracy = [_accuracy(runtime, names, *scored, bar)] if scored else []
        return [*accuracy, _latency(runtime, names, one, threads, bar)]


def _accuracy(
    runtime: Runtime, names: Signature, images: Array, labels: Array, where: str, bar: Progress
) -> bundle_pb2.Measurement:
    found = []
    for start in range(0, len(images), _SCORED_AT_ONCE):
        batch = images[start : start + _SCORED_AT_ONCE]
        found.append(runtime.run({names.input.name: batch})[names.output.name].argmax(axis=-1))
        bar.advance()
    top1 = float(np.mean(np.concatenate(found) == labels))
    low, high = wilson(top1, len(images))
    return bundle_pb2.Measurement(
        name="validation_top1", value=top1, low=low, high=high, unit="fraction", where=where
    )


def _latency(
    runtime: Runtime, names: Signature, one: Array, threads: int, bar: Progress
) -> bundle_pb2.Measurement:
    taken_ms = []
    for _ in range(_TIMED):
        began_s = time.perf_counter()
        runtime.run({names.input.name: one})
        taken_ms.append((time.perf_counter() - began_s) * 1e3)
        bar.advance()
    return bundle_pb2.Measurement(
        name="latency_batch_1",
        value=statistics.median(taken_ms),
        low=min(taken_ms),
        high=max(taken_ms),
        unit="ms",
        where=f"{threads} threads on the exporting machine of {os.cpu_count()} cores",
    )
