"""The server's life: load and warm the models, listen, serve, drain, stop.

The one place that wires repository, batchers and services together. Draining is our own, because gRPC's `stop(grace)` alone neither
tells anybody in advance nor refuses politely: first the health service says NOT_SERVING, then new calls get UNAVAILABLE while the
ones under way finish, and only then does the listener close.
"""

import asyncio
import contextlib
import errno
import logging
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from protos import inference_pb2_grpc, vision_pb2_grpc
from serving import codec
from serving.batching import BatchLimits
from serving.command import UserError
from serving.repository import Entry, LoadedModel, Repository
from serving.runtime.select import open_runtime
from serving.service.decoding import Decoder
from serving.service.health import Health
from serving.service.inference import InferenceService
from serving.service.models import Models
from serving.service.vision import VisionService

log = logging.getLogger(__name__)

# A full batch fits in any case; below this, so do a few photographs.
_SMALLEST_MESSAGE_LIMIT_BYTES = 64 << 20
_MESSAGE_FRAME_BYTES = 1 << 20
# Callers that just got an answer and ask again get a polite refusal for so long; a closing listener would cut them off (CANCELLED).
_LINGER_S = 0.3
# For answers that are computed but not yet sent, when nothing else is under way.
_FLUSH_S = 1.0


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
      model_repository: folder of NAME/VERSION bundles.
      host, port: where to listen; port 0 takes a free one.
      threads: of one model's runtime, and for decoding images; 0 is one for each core this process may use.
      executors: batches of a model computed at the same time, see `BatchLimits.concurrency`; 0 is two where a model has several
        threads, and one where it has one: each executor beyond the first computes with a thread of its own besides those.
      max_batch_size, max_delay_s, max_queue_rows: see `BatchLimits`; the queue holds at least one batch.
      precision: which model file of each bundle; "" is its first.
      max_message_bytes: largest message taken or sent; 0 derives it from the largest batch. gRPC itself ends calls beyond it.

    Raises:
      UserError: when the queue cannot hold one full batch.
    """

    model_repository: Path
    host: str = "0.0.0.0"
    port: int = 8001
    threads: int = 0
    executors: int = 0
    max_batch_size: int = 32
    max_delay_s: float = 0.002
    max_queue_rows: int = 256
    precision: str = ""
    max_message_bytes: int = 0

    def __post_init__(self) -> None:
        if self.max_queue_rows < self.max_batch_size:
            raise UserError(
                f"--max_queue_rows={self.max_queue_rows} is below --max_batch_size={self.max_batch_size}: a full "
                "batch would be refused for ever; raise the one or lower the other"
            )

    @property
    def thread_count(self) -> int:
        """`threads`, counted where it is 0."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def executor_count(self) -> int:
        """`executors`, chosen where it is 0."""
        return self.executors or min(2, self.thread_count)

    def limits(self, model: LoadedModel) -> BatchLimits:
        """The batch limits of one model."""
        return BatchLimits(
            max_batch_size=self.max_batch_size,
            max_delay_s=self.max_delay_s,
            max_queue_rows=self.max_queue_rows,
            buckets=tuple(model.bundle.manifest.batch_buckets),
            concurrency=self.executor_count,
        )


class Server:
    """A running server. Made by `start`, ended by `stop`."""

    def __init__(
        self,
        models: Models,
        repository: Repository,
        decoder: Decoder,
        health: Health,
        grpc_server: grpc.aio.Server,
        port: int,
    ) -> None:
        """Use `start`."""
        self.models = models
        self.port = port
        self._repository = repository
        self._decoder = decoder
        self._health = health
        self._grpc_server = grpc_server

    @classmethod
    async def start(cls, options: ServerOptions) -> "Server":
        """A server that answers calls when this returns.

        Raises:
          UserError: when there is nothing to serve, the port is taken, or the host is none of this machine.
        """
        _check_address(options.host, options.port)  # before models are loaded, which takes long
        repository = Repository(
            options.model_repository,
            open_runtime,
            options.thread_count,
            options.precision,
            options.max_batch_size,
        )
        repository.load_all()
        models = Models(repository, options.limits)
        decoder = Decoder(options.thread_count, options.max_queue_rows)
        grpc_server = grpc.aio.server(options=_channel_options(options, models))
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceService(models), grpc_server)
        vision_pb2_grpc.add_VisionServicer_to_server(VisionService(models, decoder), grpc_server)
        health = Health()
        await health.register(grpc_server)
        port = _listen(grpc_server, options.host, options.port)
        await grpc_server.start()
        return cls(models, repository, decoder, health, grpc_server, port)

    @property
    def loaded(self) -> list[LoadedModel]:
        """The models that are served."""
        return list(self._repository.models())

    @property
    def refused(self) -> list[Entry]:
        """The versions that were found and are not served, each with its reason."""
        return [entry for entry in self._repository.index() if entry.state == "UNAVAILABLE"]

    async def stop(self, drain_s: float) -> None:
        """Drains for `drain_s` at most, then ends; a call that takes longer is cut off, and the log says so."""
        await self._health.stop_serving()
        self.models.refuse_calls()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.models.wait_idle(), drain_s)
        cut = self.models.under_way
        if cut:
            log.warning("%d calls were still under way after %g s and are cut off", cut, drain_s)
        else:
            await asyncio.sleep(_LINGER_S)
        await self._grpc_server.stop(None if cut else _FLUSH_S)
        self._decoder.close()
        for model in self.models:
            await model.batcher.drain()
        for loaded in self.loaded:
            loaded.runtime.close()


_MOST_MESSAGE_BYTES = 2**31 - 1  # what gRPC can count


def _channel_options(options: ServerOptions, models: Models) -> list[tuple[str, int]]:
    limit = min(options.max_message_bytes or _message_limit_bytes(options, models), _MOST_MESSAGE_BYTES)
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # Two servers on one port would share its connections without a word.
        ("grpc.so_reuseport", 0),
        # Clients behind a firewall that forgets quiet connections may keep theirs alive.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _message_limit_bytes(options: ServerOptions, models: Models) -> int:
    """Room for a full batch of the largest rows that any model takes or gives."""
    row_bytes = max(
        math.prod(spec.shape[1:]) * codec.numpy_type(spec.datatype).itemsize
        for model in models
        for spec in (*model.inputs, *model.outputs)
    )
    return max(_SMALLEST_MESSAGE_LIMIT_BYTES, options.max_batch_size * row_bytes + _MESSAGE_FRAME_BYTES)


def _listen(grpc_server: grpc.aio.Server, host: str, port: int) -> int:
    address = _shown(host, port)
    try:
        bound = grpc_server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        _check_address(host, port)  # somebody else was quicker
        raise UserError(f"cannot listen on {address}; choose another --port, or 0 for a free one")
    return int(bound)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(host: str, port: int) -> None:
    """Asks the operating system for the address, which says why not; gRPC keeps that to itself or writes lines of its own.

    Raises:
      UserError: when no address of the host can be listened on, with what to change.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--host={host} cannot be resolved ({reason}); {_HOSTS}") from error
    failures = [
        failure for family, kind, _, _, address in found if (failure := _failure(family, kind, address))
    ]
    if len(failures) < len(found):
        return
    failure = failures[0]
    problem = f"cannot listen on {_shown(host, port)}: {failure.strerror}"
    if failure.errno == errno.EADDRNOTAVAIL:
        raise UserError(f"{problem}: --host={host} is no address of this machine; {_HOSTS}")
    raise UserError(f"{problem}; choose another --port, or 0 for a free one")


_HOSTS = "give an address of this machine, as 127.0.0.1, or 0.0.0.0 for all of them"


def _failure(family: int, kind: int, address: Any) -> OSError | None:
    try:
        with socket.socket(family, kind) as probe:
            # As gRPC does, so that a port whose last server has just ended is free; one that listens is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
