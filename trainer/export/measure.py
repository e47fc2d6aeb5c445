"""What the exported file answers and how long it takes, in the runtime that will serve it."""

import os
import statistics
import time

import numpy as np

from protos import bundle_pb2
from serving.command import progress
from serving.runtime.base import Runtime
from trainer.export.graph import Array
from trainer.export.samples import Samples
from trainer.export.signature import Signature
from trainer.interval import wilson

_SCORED_AT_ONCE, _TIMED = 32, 50  # images at a time for accuracy, and times that one input is timed


def measurements(
    runtime: Runtime, names: Signature, samples: Samples, one: Array, threads: int
) -> list[bundle_pb2.Measurement]:
    """Accuracy on the scored samples, where there are any, and latency of `one` input (1, …)."""
    scored = samples.scored()
    accuracy = [_accuracy(runtime, names, *scored)] if scored else []
    return [*accuracy, _latency(runtime, names, one, threads)]


def top1(runtime: Runtime, names: Signature, images: Array, labels: Array) -> float:
    """The fraction of `images` (N, …) whose largest answer is their label."""
    starts, found = range(0, len(images), _SCORED_AT_ONCE), []
    with progress(len(starts), "accuracy") as bar:
        for start in starts:
            batch = images[start : start + _SCORED_AT_ONCE]
            found.append(runtime.run({names.input.name: batch})[names.output.name].argmax(axis=-1))
            bar.advance()
    return float(np.mean(np.concatenate(found) == labels))


def _accuracy(
    runtime: Runtime, names: Signature, images: Array, labels: Array, where: str
) -> bundle_pb2.Measurement:
    value = top1(runtime, names, images, labels)
    low, high = wilson(value, len(images))
    return bundle_pb2.Measurement(
        name="validation_top1", value=value, low=low, high=high, unit="fraction", where=where
    )


def _latency(runtime: Runtime, names: Signature, one: Array, threads: int) -> bundle_pb2.Measurement:
    taken_ms = []
    with progress(_TIMED, "latency") as bar:
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
