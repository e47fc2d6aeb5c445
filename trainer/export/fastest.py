"""Which precision to ship: the fastest within the accuracy gate, as measured here; of equally fast files the smallest."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.timing.turns import Timing, time_in_turns
from trainer.export.candidate import Candidate
from trainer.export.graph import Array

_SECONDS = 2.0  # of timing
_AS_FAST = 0.03  # times that lie nearer than this are one time, whatever the spread


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen candidate, and what each one took (in the order given)."""

    chosen: Candidate
    timings: Sequence[Timing]


def fastest(candidates: Sequence[Candidate], name: str, inputs: Array) -> Choice:
    """Times `candidates`, at least one, in turns on `inputs` (B, …), which go into the input called `name`."""
    given = {name: np.ascontiguousarray(inputs)}
    timings = time_in_turns([one.runtime for one in candidates], [given] * len(candidates), _SECONDS)
    least = min(timings, key=lambda timing: timing.p50_ms)
    limit = least.p50_ms * (1 + max(_AS_FAST, least.spread))
    near = [one for one, timing in zip(candidates, timings, strict=True) if timing.p50_ms <= limit]
    return Choice(min(near, key=lambda one: len(one.content)), timings)


def why_shipped(precision: str, tried: Mapping[str, Any], batch: int) -> str:
    """What is shipped and why, one sentence; `tried` has for each precision its p50_ms and mib, or why it was `refused`."""
    found = [
        f"{name} {one['p50_ms']:.2f} ms and {one['mib']:.2f} MiB"
        if "p50_ms" in one
        else f"{name} refused ({one['refused']})"
        for name, one in tried.items()
    ]
    return (
        f"{precision} is shipped, the fastest within the accuracy gate at batch {batch}, of equals the smallest: "
        + "; ".join(found)
    )
