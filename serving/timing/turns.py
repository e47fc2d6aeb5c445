"""How long model files take in the runtime that will serve them, on this machine.

A machine is never quiet, and what others take of it only adds: on a shared core a call may take half as long again for seconds on
end. Files are therefore timed in turns, a short round of each, for as long as asked; the few rounds that were disturbed least say
what the file takes, and the median of all rounds is told beside it.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.runtime.base import Array, Runtime
from serving.runtime.select import open_runtime

_ROUNDS, _RUNS = 9, 12  # 108 runs of each at least
_WARM_UP = 3
_COUNTED = 5  # rounds


@dataclasses.dataclass(frozen=True)
class Timing:
    """One file's time in a call, ms.

    `p50_ms` is the median of the runs of a round, of the five rounds that were disturbed least the middle one; `spread` is how far
    those five lie apart, as a fraction of it. `p99_ms` and `median_ms` are of all runs, disturbed or not.
    """

    p50_ms: float
    p99_ms: float
    spread: float
    median_ms: float


def time_models(
    models: Sequence[Path | bytes], inputs: Sequence[dict[str, Array]], threads: int, seconds: float = 0.0
) -> list[Timing]:
    """The timing of each model file (or its bytes) with its own of `inputs`, all in memory at once, on `threads` threads."""
    runtimes = [open_runtime(model, "onnxruntime", threads) for model in models]
    found = time_in_turns(runtimes, inputs, seconds)
    for runtime in runtimes:
        runtime.close()
    return found


def drawn_images(shape: tuple[int, ...]) -> Array:
    """Numbers like those of normalised images, always the same of one `shape` (images, H, W, C)."""
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def time_in_turns(
    runtimes: Sequence[Runtime], inputs: Sequence[dict[str, Array]], seconds: float = 0.0
) -> list[Timing]:
    """The timing of each of `runtimes` with its own of `inputs`, in nine turns, and more until `seconds` have passed."""
    taken_ms, ends_s = list[list[list[float]]](), time.monotonic() + seconds
    while len(taken_ms) < _ROUNDS or time.monotonic() < ends_s:
        taken_ms.append([_round_ms(runtime, given) for runtime, given in zip(runtimes, inputs, strict=True)])
    return [summary(rounds) for rounds in np.array(taken_ms).swapaxes(0, 1)]


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
    counted = np.sort(np.median(taken_ms, axis=1))[:_COUNTED]
    p50_ms = float(np.median(counted))
    median_ms, p99_ms = (float(value) for value in np.percentile(taken_ms, [50, 99]))
    return Timing(p50_ms, p99_ms, float(counted[-1] - counted[0]) / p50_ms, median_ms)
