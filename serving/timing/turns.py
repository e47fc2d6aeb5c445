"""How long model files take in the runtime that will serve them, on this machine.

A machine is never quiet: files are timed in turns, a short round of each, and the median of the rounds' medians counts; how far the
rounds lie apart is told with it.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.runtime.base import Array, Runtime
from serving.runtime.select import open_runtime

_ROUNDS, _RUNS = 9, 12  # 108 runs of each
_WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Timing:
    """One file's time in a call, ms: median of the rounds' medians, 99th percentile of all runs, and the spread of the rounds.

    `spread` is the distance between the quartiles of the rounds' medians, as a fraction of `p50_ms`.
    """

    p50_ms: float
    p99_ms: float
    spread: float


def time_models(
    models: Sequence[Path | bytes], inputs: Sequence[dict[str, Array]], threads: int
) -> list[Timing]:
    """The timing of each model file (or its bytes) with its own of `inputs`, all in memory at once, on `threads` threads."""
    runtimes = [open_runtime(model, "onnxruntime", threads) for model in models]
    found = time_in_turns(runtimes, inputs)
    for runtime in runtimes:
        runtime.close()
    return found


def drawn_images(shape: tuple[int, ...]) -> Array:
    """Numbers like those of normalised images, always the same of one `shape` (images, H, W, C)."""
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def time_in_turns(runtimes: Sequence[Runtime], inputs: Sequence[dict[str, Array]]) -> list[Timing]:
    """The timing of each of `runtimes` with its own of `inputs`."""
    taken_ms = np.empty((len(runtimes), _ROUNDS, _RUNS))
    for turn in range(_ROUNDS):
        for index, (runtime, given) in enumerate(zip(runtimes, inputs, strict=True)):
            taken_ms[index, turn] = _round_ms(runtime, given)
    return [summary(rounds) for rounds in taken_ms]


def _round_ms(runtime: Runtime, given: dict[str, Array]) -> list[float]:
    """A round's runs, ms, after a few that bring the caches back."""
    taken = []
    for _ in range(_WARM_UP + _RUNS):
        began_s = time.perf_counter()
        runtime.run(given)
        taken.append((time.perf_counter() - began_s) * 1e3)
    return taken[_WARM_UP:]


def summary(taken_ms: Array) -> Timing:
    """What (rounds, runs) times in ms come to."""
    medians = np.median(taken_ms, axis=1)
    low, middle, high = (float(value) for value in np.percentile(medians, [25, 50, 75]))
    return Timing(middle, float(np.percentile(taken_ms, 99)), (high - low) / middle)
