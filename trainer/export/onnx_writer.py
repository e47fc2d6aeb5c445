"""Models as ONNX graphs, for any batch.

Written from the description, node by node, so that LayerNormalization and Gelu are single nodes and every weight product is a
MatMul with an Add: what runtimes fuse and quantize well. Each family has its file in `writers`; here is the choice among them.
"""

import math

import numpy as np
import onnx

from serving.command import UserError
from trainer.description import Mixer, Model, TextTower, TwoTowers, ViT, param_count
from trainer.export.graph import Graph
from trainer.export.signature import IMAGE_TOWER, IMAGES, LOGITS, MODEL, TEXT_TOWER, Single, signature
from trainer.export.writers.mixer import write_mixer
from trainer.export.writers.text import write_text
from trainer.export.writers.vit import write_vit
from trainer.models.build import Params

INPUT, OUTPUT = IMAGES, LOGITS  # of a classifier
# Protobuf writes no more than 2 GiB; a MiB for names and nodes. Weights in files of their own would lift this, but a bundle has
# one file for each precision.
_MOST_BYTES = 2**31 - 2**20
_NORM_EPS = 1e-8  # LiT's


def write_onnx(model: Single, params: Params) -> onnx.ModelProto:
    """The checked ONNX model of `model` with `params`; its tensors are those of `signature(model)`.

    Raises:
      UserError: for a model that is too large for one ONNX file, or that is no single graph.
    """
    return _write(model, params, tower=False)


def towers(model: TwoTowers, params: Params) -> dict[str, onnx.ModelProto]:
    """The two graphs of a pair, `image` and `text`, each ending in L2-normalised embeddings.

    The similarity of a picture and a text is the dot product of their embeddings times `multiplier(params)`.

    Raises:
      UserError: for a tower that is too large for one ONNX file.
    """
    for one in (model.image, model.text):
        _require_one_file(one)
    return {
        IMAGE_TOWER: _write(model.image, params["image"], tower=True),
        TEXT_TOWER: _write(model.text, params["text"], tower=True),
    }


def multiplier(params: Params) -> float:
    """What a pair's dot products are multiplied by before a softmax, exp(t): for the manifest, it is in neither graph."""
    return math.exp(float(np.asarray(params["t"]).item()))


def graphs(model: Model, params: Params) -> dict[str, onnx.ModelProto]:
    """All graphs of any description by name, as `signatures(model)` names them."""
    if isinstance(model, TwoTowers):
        return towers(model, params)
    return {MODEL: write_onnx(model, params)}


def _require_one_file(model: Single) -> None:
    if 4 * param_count(model) > _MOST_BYTES:
        raise UserError(
            f"the model has {param_count(model):,} parameters, one ONNX file holds at most {_MOST_BYTES // 4:,}; "
            "take a smaller variant, or cut it first with trainer.compress"
        )


def _write(model: Single, params: Params, tower: bool) -> onnx.ModelProto:
    _require_one_file(model)
    graph = Graph()
    result = _body(graph, model, params)
    if tower:
        result = _normalised(graph, result)
    return graph.model(signature(model, tower), result)


def _body(graph: Graph, model: Single, params: Params) -> str:
    match model:
        case ViT():
            return write_vit(graph, model, params)
        case Mixer():
            return write_mixer(graph, model, params)
        case TextTower():
            return write_text(graph, model, params)
    raise UserError(f"a model of kind {getattr(model, 'kind', model)!r} is no single graph; take its towers")


def _normalised(graph: Graph, x: str) -> str:
    """x / (‖x‖ + ε) of each row."""
    axes = graph.weight("normalise/axes", np.array([-1]))
    length = graph.node("ReduceL2", "normalise/length", x, axes, keepdims=1)
    epsilon = graph.weight("normalise/epsilon", np.array(_NORM_EPS, np.float32))
    return graph.node("Div", "normalise", x, graph.node("Add", "normalise/divisor", length, epsilon))


def weight_products(model: onnx.ModelProto) -> list[str]:
    """The names of the MatMul nodes whose second input is a weight, the classifier's left out."""
    weights = {weight.name for weight in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and node.name != "head/matmul"
    ]
