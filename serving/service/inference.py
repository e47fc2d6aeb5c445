"""inference.GRPCInferenceService: Triton's protocol (a superset of KServe's Open Inference Protocol v2), for tensors.

What the stock clients of that protocol ask is answered as Triton does. RPCs that are not in our protocol file end as UNIMPLEMENTED.
"""

import math
import time
from importlib import metadata
from typing import Any

from protos import inference_pb2, inference_pb2_grpc
from serving import codec
from serving.errors import InvalidInput, ModelNotFound
from serving.service import reports
from serving.service.models import Models, ServedModel, deadline_of
from serving.service.status import answers_with_status

# perf_analyzer looks for "statistics" here before it asks for them.
EXTENSIONS = ("model_configuration", "statistics")


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The servicer of inference.GRPCInferenceService."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @answers_with_status
    async def ServerLive(  # noqa: N802 (the protocol's names, here and below)
        self, request: inference_pb2.ServerLiveRequest, context: Any
    ) -> inference_pb2.ServerLiveResponse:
        return inference_pb2.ServerLiveResponse(live=True)

    @answers_with_status
    async def ServerReady(  # noqa: N802
        self, request: inference_pb2.ServerReadyRequest, context: Any
    ) -> inference_pb2.ServerReadyResponse:
        return inference_pb2.ServerReadyResponse(ready=self._models.ready)

    @answers_with_status
    async def ModelReady(  # noqa: N802
        self, request: inference_pb2.ModelReadyRequest, context: Any
    ) -> inference_pb2.ModelReadyResponse:
        try:
            self._models.find(request.name, request.version)
        except ModelNotFound:
            return inference_pb2.ModelReadyResponse(ready=False)
        return inference_pb2.ModelReadyResponse(ready=self._models.ready)

    @answers_with_status
    async def ServerMetadata(  # noqa: N802
        self, request: inference_pb2.ServerMetadataRequest, context: Any
    ) -> inference_pb2.ServerMetadataResponse:
        return inference_pb2.ServerMetadataResponse(name="vitforge", version=version(), extensions=EXTENSIONS)

    @answers_with_status
    async def ModelMetadata(  # noqa: N802
        self, request: inference_pb2.ModelMetadataRequest, context: Any
    ) -> inference_pb2.ModelMetadataResponse:
        model = self._models.find(request.name, request.version)
        return reports.model_metadata(model, self._models.versions(model.name))

    @answers_with_status
    async def ModelConfig(  # noqa: N802
        self, request: inference_pb2.ModelConfigRequest, context: Any
    ) -> inference_pb2.ModelConfigResponse:
        return reports.model_config(self._models.find(request.name, request.version))

    @answers_with_status
    async def ModelStatistics(  # noqa: N802
        self, request: inference_pb2.ModelStatisticsRequest, context: Any
    ) -> inference_pb2.ModelStatisticsResponse:
        models = self._asked_for(request.name, request.version)
        return inference_pb2.ModelStatisticsResponse(model_stats=map(reports.model_statistics, models))

    @answers_with_status
    async def ModelInfer(  # noqa: N802
        self, request: inference_pb2.ModelInferRequest, context: Any
    ) -> inference_pb2.ModelInferResponse:
        began_s = time.monotonic()
        with self._models.call():
            model = self._models.find(request.model_name, request.model_version)
            with model.failure_counts(began_s):
                inputs = codec.decode_inputs(request, model.inputs, model.batcher.limits.max_batch_size)
                names = codec.requested_outputs(request, model.outputs)
                deadline_s = deadline_of(context, _timeout_s(request))
                rows = await model.answer(inputs[model.inputs[0].name], deadline_s, began_s)
        return inference_pb2.ModelInferResponse(
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            outputs=[codec.encode_output(name, rows) for name in names],
            raw_output_contents=[codec.raw_bytes(rows) for _ in names],
        )

    def _asked_for(self, name: str, version: str) -> list[ServedModel]:
        """Version `version` of the model `name`; "" is every version, and for both of them every version of every model."""
        if not name and version:
            raise InvalidInput(
                f"version {version!r} is asked for without a model: name the model too, or leave both empty for all"
            )
        if name:
            self._models.find(name, version)
        return [
            model for model in self._models if name in ("", model.name) and version in ("", model.version)
        ]


def version() -> str:
    """The version of this distribution, or "0" when it runs from a folder that was never installed."""
    try:
        return metadata.version("vitforge")
    except metadata.PackageNotFoundError:
        return "0"


def _timeout_s(request: inference_pb2.ModelInferRequest) -> float:
    """The request's own `timeout` parameter, microseconds on the wire; absent or 0 is none."""
    if "timeout" not in request.parameters:
        return math.inf
    parameter = request.parameters["timeout"]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidInput(f"parameter 'timeout' must be an integer of microseconds, got {kind or 'nothing'}")
    timeout_us = int(getattr(parameter, kind))
    if timeout_us < 0:
        raise InvalidInput(f"parameter 'timeout' must be at least 0 microseconds, got {timeout_us}")
    return timeout_us / 1e6 or math.inf
