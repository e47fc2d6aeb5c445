"""The models that a server has, as its services see them: found by name, asked for rows, counted, and drained together.

Apart from `deadline_of` it knows nothing of gRPC: neither the messages of a call nor status codes.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from protos import bundle_pb2
from serving.batching import Batcher, BatchLimits
from serving.errors import ShuttingDown
from serving.manifest import classifies
from serving.preprocess import PreprocessSpec
from serving.repository import LoadedModel, Repository
from serving.telemetry import ModelTelemetry


@dataclass(frozen=True)
class ServedModel:
    """One version of one model, loaded and warm: what its bundle says of it, its batcher and its statistics."""

    name: str
    version: str
    platform: str
    inputs: tuple[bundle_pb2.TensorSpec, ...]
    outputs: tuple[bundle_pb2.TensorSpec, ...]
    labels: tuple[str, ...]
    preprocessing: PreprocessSpec | None  # None: it takes no images
    classifies: bool
    batcher: Batcher
    telemetry: ModelTelemetry

    @contextmanager
    def failure_counts(self, began_s: float) -> Iterator[None]:
        """Counts the call that began at `began_s`, on time.monotonic's clock, as failed if the enclosed work raises.

        It encloses all that is done for a call once its model is known: a request that cannot be decoded is a failed one too.
        """
        try:
            yield
        except BaseException:  # a cancelled call is a failed one in the statistics
            self.telemetry.request_failed(time.monotonic() - began_s)
            raise

    async def answer(self, rows: np.ndarray, deadline_s: float, began_s: float) -> np.ndarray:
        """The model's output rows for `rows` of a call that began at `began_s`; both times on time.monotonic's clock.

        Counts the call when it is answered; `failure_counts` counts it when it is not. Raises what `Batcher.submit` raises.
        """
        answer = await self.batcher.submit(rows, deadline_s)
        self.telemetry.request_succeeded(answer, time.monotonic() - began_s)
        return answer.rows


class Models:
    """All served models, and the calls that are under way on them."""

    def __init__(self, repository: Repository, limits: Callable[[LoadedModel], BatchLimits]) -> None:
        """Everything that `repository` has loaded, each batched within the `limits` for it."""
        self._repository = repository
        self._served = {
            (loaded.name, loaded.version): _served(loaded, limits(loaded)) for loaded in repository.models()
        }
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def __iter__(self) -> Iterator[ServedModel]:
        """Every version of every model, by name, oldest version first."""
        for name, version in sorted(self._served, key=lambda key: (key[0], int(key[1]))):
            yield self._served[name, version]

    @property
    def ready(self) -> bool:
        """Whether calls are taken."""
        return not self._draining

    @property
    def under_way(self) -> int:
        """How many calls are being worked on."""
        return self._under_way

    def versions(self, name: str) -> list[str]:
        """The served versions of `name`, oldest first."""
        return self._repository.versions(name)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model `name`, in its newest version when `version` is empty.

        Raises:
          ModelNotFound: naming what there is.
        """
        loaded = self._repository.get(name, version)
        return self._served[loaded.name, loaded.version]

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts the enclosed work as under way. Raises ShuttingDown once the server drains."""
        if self._draining:
            raise ShuttingDown(
                "the server is shutting down and takes no new requests: try another one, or later"
            )
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._idle.set()

    def refuse_calls(self) -> None:
        """From now on `call` raises ShuttingDown; calls under way go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""
        await self._idle.wait()


def _served(loaded: LoadedModel, limits: BatchLimits) -> ServedModel:
    telemetry = ModelTelemetry()
    manifest = loaded.bundle.manifest
    file, _ = loaded.bundle.model_file(loaded.precision)
    return ServedModel(
        name=loaded.name,
        version=loaded.version,
        platform=_PLATFORMS.get(file.runtime, file.runtime),
        inputs=tuple(manifest.inputs),
        outputs=tuple(manifest.outputs),
        labels=tuple(manifest.labels),
        preprocessing=loaded.bundle.preprocess,
        classifies=classifies(manifest),
        batcher=Batcher(loaded.run, limits, on_batch=telemetry.batch_ran),
        telemetry=telemetry,
    )


# The protocol's names, which say engine and format.
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx"}


def deadline_of(context: Any, timeout_s: float = math.inf) -> float:
    """When a call must be answered, on time.monotonic's clock: its gRPC deadline, or `timeout_s` from now, if that is sooner."""
    remaining_s = context.time_remaining()
    return time.monotonic() + min(timeout_s, math.inf if remaining_s is None else remaining_s)
