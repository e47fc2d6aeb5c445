"""Load on a running server from this process: throughput and latency of Vision/Classify on encoded images, and its answers.

Models are measured in turn, round after round, so that a machine that slows down slows them alike; figures are medians over the
rounds. The load comes over one gRPC channel; the CPU time of this process is reported, because on a small machine the client
takes cores from the server.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from serving.client import VisionClient
from serving.command import progress


@dataclasses.dataclass(frozen=True)
class Load:
    """Throughput: `concurrency` callers with `images_per_request` images each. Latency: one caller, one image."""

    concurrency: int = 4
    images_per_request: int = 16
    window_s: float = 1.0
    latency_requests: int = 100
    rounds: int = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """Medians over the rounds, with the lowest and highest images/s, and the client's CPU seconds per second of throughput load."""

    images_per_s: float
    images_per_s_low: float
    images_per_s_high: float
    p50_ms: float
    p99_ms: float
    client_cpu_share: float


def predictions(client: VisionClient, model: str, images: Sequence[bytes], batch: int = 32) -> list[int]:
    """The index of the first label for each of `images`, as the server answers it."""
    found: list[int] = []
    for start in range(0, len(images), batch):
        found += [
            answer[0].index for answer in client.classify(images[start : start + batch], model=model, top_k=1)
        ]
    return found


def measure(
    client: VisionClient, models: Sequence[str], images: Sequence[bytes], load: Load
) -> dict[str, Speed]:
    """The speed of each of `models` on `images`, measured in turn."""

    def ask(model: str, chosen: Sequence[int]) -> None:
        client.classify([images[index] for index in chosen], model=model, top_k=1)

    throughput: dict[str, list[tuple[float, float]]] = {model: [] for model in models}
    latency_ms: dict[str, list[float]] = {model: [] for model in models}
    with progress(load.rounds * len(models), "measuring") as bar:
        for _ in range(load.rounds):
            for model in models:
                _latencies(client, model, images, 5)  # wakes the model's threads
                latency_ms[model] += _latencies(client, model, images, load.latency_requests)
                throughput[model].append(_throughput(ask, model, len(images), load))
                bar.advance(note=model)
    return {model: _speed(throughput[model], latency_ms[model]) for model in models}


def _latencies(client: VisionClient, model: str, images: Sequence[bytes], count: int) -> list[float]:
    found = []
    for index in range(count):
        began_s = time.perf_counter()
        client.classify([images[index % len(images)]], model=model, top_k=1)
        found.append((time.perf_counter() - began_s) * 1e3)
    return found


Ask = Callable[
    [str, Sequence[int]], object
]  # asks a model for the images at these places, and waits for its answer


def rounds(ask: Ask, models: Sequence[str], available: int, load: Load) -> list[dict[str, float]]:
    """images/s of every model in each round, measured in turn; `available` images are asked for over and over."""
    found: list[dict[str, float]] = []
    with progress(load.rounds * len(models), "measuring") as bar:
        for _ in range(load.rounds):
            found.append({})
            for model in models:
                ask(model, range(min(load.images_per_request, available)))  # wakes the model's threads
                found[-1][model], _ = _throughput(ask, model, available, load)
                bar.advance(note=model)
    return found


def _throughput(ask: Ask, model: str, available: int, load: Load) -> tuple[float, float]:
    """(images/s, CPU seconds of this process per second) while `concurrency` callers ask as fast as they are answered."""
    end_s = time.perf_counter() + load.window_s
    began_s, began_cpu_s = time.perf_counter(), time.process_time()

    def caller(number: int) -> int:
        done, start = 0, number * load.images_per_request
        # One that starts late on a busy machine asks once: nothing done would read as no speed at all.
        while not done or time.perf_counter() < end_s:
            ask(model, [(start + offset) % available for offset in range(load.images_per_request)])
            done, start = done + load.images_per_request, start + load.concurrency * load.images_per_request
        return done

    with ThreadPoolExecutor(load.concurrency) as callers:
        done = sum(callers.map(caller, range(load.concurrency)))
    seconds = time.perf_counter() - began_s
    return done / seconds, (time.process_time() - began_cpu_s) / seconds


def _speed(throughput: list[tuple[float, float]], latency_ms: list[float]) -> Speed:
    rates = [rate for rate, _ in throughput]
    percentiles = statistics.quantiles(latency_ms, n=100)
    return Speed(
        images_per_s=statistics.median(rates),
        images_per_s_low=min(rates),
        images_per_s_high=max(rates),
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        client_cpu_share=statistics.median(share for _, share in throughput),
    )
