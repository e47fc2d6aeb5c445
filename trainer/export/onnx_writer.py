"""The Vision Transformer as an ONNX graph: images (B, H, W, C) float32 → logits (B, classes), for any batch.

Written from the description, node by node, so that LayerNormalization and Gelu are single nodes and every weight product is a
MatMul with an Add: what runtimes fuse and quantize well. Query, key and value are one product (fewer, larger products), and the
attention scale is folded into the query's weights.
"""

import numpy as np
import onnx

from serving.command import UserError
from trainer.description import Block, ViT, param_count
from trainer.export.graph import Graph
from trainer.models.build import Params

INPUT, OUTPUT = "images", "logits"
_MOST_BYTES = 2**31 - 2**20  # protobuf writes no more than 2 GiB; a MiB for names and nodes


def write_onnx(model: ViT, params: Params) -> onnx.ModelProto:
    """The checked ONNX model of `model` with `params`.

    Raises:
      UserError: for a model that is too large for one ONNX file.
    """
    if 4 * param_count(model) > _MOST_BYTES:
        raise UserError(
            f"the model has {param_count(model):,} parameters, one ONNX file holds at most {_MOST_BYTES // 4:,}; "
            "cut it first with trainer.compress"
        )
    graph = Graph()
    x = _tokens(graph, model, params)
    for index, block in enumerate(model.blocks):
        name, own = f"blocks/{index}", params["blocks"][str(index)]
        if block.num_heads:
            x = graph.node(
                "Add", f"{name}/attention/residual", x, _attention(graph, name, x, model, block, own)
            )
        if block.mlp_dim:
            x = graph.node("Add", f"{name}/mlp/residual", x, _mlp(graph, name, x, model, own))
    _head(graph, model, params, x)
    image: list[int | str] = ["batch", *model.image_size, model.channels]
    return graph.model({INPUT: image}, {OUTPUT: ["batch", model.num_classes]})


def _tokens(graph: Graph, model: ViT, params: Params) -> str:
    """Patches as rows times the patch kernel, plus one table that holds bias, positions and class token."""
    p, channels, width = model.patch_size, model.channels, model.width
    rows, columns = model.image_size[0] // p, model.image_size[1] // p
    x = INPUT
    if (rows * p, columns * p) != model.image_size:
        ends = graph.weight("patch/crop/ends", np.array([rows * p, columns * p]))
        starts, axes = (
            graph.weight("patch/crop/starts", np.array([0, 0])),
            graph.weight("patch/crop/axes", np.array([1, 2])),
        )
        x = graph.node("Slice", "patch/crop", x, starts, ends, axes)
    x = graph.reshape("patch/grid", x, [0, rows, p, columns, p, channels])
    x = graph.node("Transpose", "patch/group", x, perm=[0, 1, 3, 2, 4, 5])
    x = graph.reshape("patch/rows", x, [0, rows * columns, p * p * channels])
    kernel = np.asarray(params["patch"]["kernel"]).reshape(p * p * channels, width)
    x = graph.node("MatMul", "patch/matmul", x, graph.weight("patch/kernel", kernel))
    table = np.array(params["pos"])
    table[:, -model.num_patches :] += np.asarray(params["patch"]["bias"])
    if model.pooling == "cls":
        # A row of zeros in front, filled by the table: the batch needs no Shape and Expand.
        table[:, 0] += np.asarray(params["cls"])[:, 0]
        pads, axes = graph.weight("cls/pads", np.array([1, 0])), graph.weight("cls/axes", np.array([1]))
        x = graph.node("Pad", "cls/row", x, pads, "", axes)
    return graph.node("Add", "pos/add", x, graph.weight("pos", table))


def _attention(graph: Graph, name: str, x: str, model: ViT, block: Block, params: Params) -> str:
    attention, heads = params["attention"], block.num_heads
    dims = (block.qk_dim, block.qk_dim, block.v_dim)
    scales = (block.qk_dim**-0.5, 1.0, 1.0)
    layers = [attention[part] for part in ("query", "key", "value")]
    kernel = np.concatenate(
        [np.asarray(layer["kernel"]).reshape(model.width, -1) * s for layer, s in zip(layers, scales)], axis=1
    )
    bias = np.concatenate([np.asarray(layer["bias"]).reshape(-1) * s for layer, s in zip(layers, scales)])
    at = f"{name}/attention"
    normed = graph.norm(f"{name}/norm1", x, params["norm1"]["scale"], params["norm1"]["bias"], model.norm_eps)
    parts = graph.split(
        f"{at}/split", graph.dense(f"{at}/qkv", normed, kernel, bias), [heads * dim for dim in dims]
    )

    def per_head(part: int, label: str, order: list[int]) -> str:
        shaped = graph.reshape(f"{at}/{label}/heads", parts[part], [0, model.num_tokens, heads, dims[part]])
        return graph.node("Transpose", f"{at}/{label}", shaped, perm=order)

    query, key, value = (
        per_head(0, "query", [0, 2, 1, 3]),
        per_head(1, "key", [0, 2, 3, 1]),
        per_head(2, "value", [0, 2, 1, 3]),
    )
    weights = graph.node(
        "Softmax", f"{at}/softmax", graph.node("MatMul", f"{at}/logits", query, key), axis=-1
    )
    mixed = graph.node(
        "Transpose", f"{at}/tokens", graph.node("MatMul", f"{at}/mix", weights, value), perm=[0, 2, 1, 3]
    )
    joined = graph.reshape(f"{at}/joined", mixed, [0, model.num_tokens, heads * block.v_dim])
    out = np.asarray(attention["out"]["kernel"]).reshape(heads * block.v_dim, model.width)
    return graph.dense(f"{at}/out", joined, out, attention["out"]["bias"])


def _mlp(graph: Graph, name: str, x: str, model: ViT, params: Params) -> str:
    normed = graph.norm(f"{name}/norm2", x, params["norm2"]["scale"], params["norm2"]["bias"], model.norm_eps)
    fc1, fc2 = params["mlp"]["fc1"], params["mlp"]["fc2"]
    hidden = graph.dense(f"{name}/mlp/fc1", normed, fc1["kernel"], fc1["bias"])
    approximate = "tanh" if model.gelu == "tanh" else "none"
    hidden = graph.node("Gelu", f"{name}/mlp/gelu", hidden, approximate=approximate)
    return graph.dense(f"{name}/mlp/fc2", hidden, fc2["kernel"], fc2["bias"])


def _head(graph: Graph, model: ViT, params: Params, x: str) -> None:
    if model.pooling == "cls":  # the norm is per token: only the class token needs it
        x = graph.node("Gather", "head/token", x, graph.weight("head/token/index", np.array(0)), axis=1)
    x = graph.norm("norm", x, params["norm"]["scale"], params["norm"]["bias"], model.norm_eps)
    if model.pooling == "gap":
        x = graph.node(
            "ReduceMean", "head/mean", x, graph.weight("head/mean/axes", np.array([1])), keepdims=0
        )
    product = graph.node("MatMul", "head/matmul", x, graph.weight("head/kernel", params["head"]["kernel"]))
    graph.node("Add", OUTPUT, product, graph.weight("head/bias", params["head"]["bias"]))


def weight_products(model: onnx.ModelProto) -> list[str]:
    """The names of the MatMul nodes whose second input is a weight, the classifier's left out."""
    weights = {weight.name for weight in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and node.name != "head/matmul"
    ]
