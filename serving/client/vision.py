"""The synchronous client of one server: labels for encoded pictures, logits for prepared tensors, and what the server has.

One `VisionClient` holds one connection and may be used from many threads. It retries nothing by itself.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from protos import inference_pb2, inference_pb2_grpc, vision_pb2, vision_pb2_grpc
from serving import codec
from serving.client import errors
from serving.errors import InvalidInput

Image = bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class Label:
    """One class that an image may show, with the model's probability for it (0 to 1)."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class TensorMetadata:
    """One input or output of a model; -1 in `shape` is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a server says of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class VisionClient:
    """Calls to the server at `target` ("HOST:PORT"). Every method raises a `ClientError` when there is no answer."""

    def __init__(self, target: str, *, timeout_s: float = 30.0) -> None:
        """Opens no connection yet; `timeout_s` holds for calls that name none of their own."""
        self._target = target
        self._timeout_s = timeout_s
        # The server has the limits; a client that has its own as well only fails in two places.
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=unlimited)
        self._inference = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._vision = vision_pb2_grpc.VisionStub(self._channel)

    def __enter__(self) -> "VisionClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and whatever calls still wait on it."""
        self._channel.close()

    def classify(
        self,
        images: Sequence[Image],
        model: str,
        top_k: int = 5,
        timeout_s: float | None = None,
        version: str = "",
    ) -> list[list[Label]]:
        """The `top_k` most probable labels of each image, most probable first.

        Args:
          images: encoded pictures (PNG, JPEG, …) as bytes, or paths of files that hold one.
          model: its name on the server; `version` "" is the newest.
          top_k: fewer come back when the model has fewer classes; 0 leaves it to the server.
          timeout_s: for this call, in place of the client's.
        """
        if not 0 <= top_k < 2**32:
            raise errors.Invalid(
                f"top_k={top_k} is out of range: 0 leaves it to the server, otherwise count labels"
            )
        encoded = [image if isinstance(image, bytes) else _read(Path(image)) for image in images]
        request = vision_pb2.ClassifyRequest(model=model, version=version, images=encoded, top_k=top_k)
        try:
            response = self._call(self._vision.Classify, request, timeout_s)
        except errors.Invalid as error:
            raise errors.Invalid(_with_path(str(error), images)) from error
        return [
            [Label(label.index, label.name, label.probability) for label in result.labels]
            for result in response.results
        ]

    def infer(
        self, model: str, images: np.ndarray, timeout_s: float | None = None, version: str = ""
    ) -> np.ndarray:
        """The logits (B, classes) of `images` (B, H, W, C), float32, prepared as the model's bundle says."""
        try:
            request = inference_pb2.ModelInferRequest(
                model_name=model,
                model_version=version,
                inputs=[codec.encode_input("images", images)],
                raw_input_contents=[codec.raw_bytes(images)],
            )
            return codec.decode_output(self._call(self._inference.ModelInfer, request, timeout_s), "logits")
        except InvalidInput as error:
            raise errors.Invalid(str(error)) from error

    def metadata(self, model: str, timeout_s: float | None = None, version: str = "") -> ModelMetadata:
        """What the server says of `model`."""
        request = inference_pb2.ModelMetadataRequest(name=model, version=version)
        found = self._call(self._inference.ModelMetadata, request, timeout_s)
        return ModelMetadata(
            found.name, tuple(found.versions), found.platform, _tensors(found.inputs), _tensors(found.outputs)
        )

    def ready(self, model: str = "", timeout_s: float | None = None, version: str = "") -> bool:
        """Whether the server, or the `model` when one is named, takes requests now. A server that nobody reaches does not."""
        try:
            if model:
                request = inference_pb2.ModelReadyRequest(name=model, version=version)
                return self._call(self._inference.ModelReady, request, timeout_s).ready
            return self._call(
                self._inference.ServerReady, inference_pb2.ServerReadyRequest(), timeout_s
            ).ready
        except (errors.Unavailable, errors.TimedOut):
            return False

    def _call(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> Any:
        try:
            return method(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise errors.from_call(error, self._target) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.Invalid(f"cannot read the image {path}: {error.strerror}") from error


def _with_path(message: str, images: Sequence[Image]) -> str:
    """What the server says of `images[N]`, with the path that was given in place of the number."""
    found = re.match(r"images\[(\d+)\]: ", message)
    if found is None or int(found[1]) >= len(images):
        return message
    image = images[int(found[1])]
    return message if isinstance(image, bytes) else f"{Path(image)}: {message[found.end() :]}"


def _tensors(
    found: Sequence[inference_pb2.ModelMetadataResponse.TensorMetadata],
) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in found)
