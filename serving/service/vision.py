"""Vision/Classify: encoded pictures in, labels with probabilities out.

Pictures are decoded and prepared as the model's bundle says, by the module that evaluation uses; where, says `decoding`.
"""

import time
from typing import Any

import numpy as np

from protos import vision_pb2, vision_pb2_grpc
from serving.errors import InvalidInput
from serving.preprocess import PreprocessSpec
from serving.service.decoding import Decoder
from serving.service.models import Models, ServedModel, deadline_of
from serving.service.status import answers_with_status

DEFAULT_TOP_K = 5


class VisionService(vision_pb2_grpc.VisionServicer):
    """The servicer of vitforge.vision.v1.Vision."""

    def __init__(self, models: Models, decoder: Decoder) -> None:
        self._models = models
        self._decoder = decoder

    @answers_with_status
    async def Classify(  # noqa: N802 (the protocol's name)
        self, request: vision_pb2.ClassifyRequest, context: Any
    ) -> vision_pb2.ClassifyResponse:
        began_s = time.monotonic()
        with self._models.call():
            model = self._models.find(request.model, request.version)
            with model.failure_counts(began_s):
                spec = _preprocessing_of(model)
                limit = model.batcher.limits.max_queue_rows
                if not 1 <= len(request.images) <= limit:
                    raise InvalidInput(f"a request takes 1 to {limit} images, got {len(request.images)}")
                rows = await self._decoder.prepare(request.images, spec)
                logits = await model.answer(rows, deadline_of(context), began_s)
        response = vision_pb2.ClassifyResponse(model=model.name, version=model.version, id=request.id)
        for probabilities in softmax(logits):
            labels = top_labels(probabilities, request.top_k or DEFAULT_TOP_K, model.labels)
            response.results.add(labels=labels)
        return response


def _preprocessing_of(model: ServedModel) -> PreprocessSpec:
    """How pictures become the model's input. Raises InvalidInput where it takes none, or says no classes of them."""
    if model.preprocessing is None:
        tensor = model.inputs[0]
        shape = ",".join(map(str, tensor.shape))
        raise InvalidInput(
            f"model {model.name!r} takes no images: call ModelInfer with its input '{tensor.name}', {tensor.datatype} [{shape}]"
        )
    if not model.classifies:
        raise InvalidInput(
            f"model {model.name!r} answers '{model.outputs[0].name}' and no classes: call ModelInfer for them"
        )
    return model.preprocessing


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (B, classes) of `logits` (B, classes), in double precision, so that they sum to 1 whatever came in."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def top_labels(probabilities: np.ndarray, top_k: int, names: tuple[str, ...]) -> list[vision_pb2.Label]:
    """The `top_k` classes of `probabilities` (classes,), most probable first, ties by index; a class without a name has ""."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [
        vision_pb2.Label(
            index=int(index),
            name=names[index] if index < len(names) else "",
            probability=float(probabilities[index]),
        )
        for index in order
    ]
