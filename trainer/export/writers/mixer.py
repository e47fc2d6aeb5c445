"""MLP-Mixer as ONNX nodes."""

from trainer.description import Mixer
from trainer.export.graph import Graph
from trainer.export.signature import IMAGES
from trainer.export.writers.mlp import mlp
from trainer.export.writers.patches import patch_products
from trainer.models.build import Params


def write_mixer(graph: Graph, model: Mixer, params: Params) -> str:
    """Images (B, H, W, C) → logits, or features where there is no head."""
    x = patch_products(graph, IMAGES, model.image_size, model.patch_size, "NHWC", params["patch"])
    x = graph.node("Add", "patch/add", x, graph.weight("patch/bias", params["patch"]["bias"]))
    for index in range(model.num_blocks):
        x = _block(graph, f"blocks/{index}", x, model, params["blocks"][str(index)])
    x = graph.norm("norm", x, **params["norm"], epsilon=model.norm_eps)
    x = graph.mean("mean", x)
    return graph.dense("head", x, **params["head"]) if model.num_classes else x


def _block(graph: Graph, name: str, x: str, model: Mixer, params: Params) -> str:
    normed = graph.norm(f"{name}/norm1", x, **params["norm1"], epsilon=model.norm_eps)
    # A kernel from the left would save both transposes, but quantizers look for weights on the right.
    columns = graph.node("Transpose", f"{name}/tokens/columns", normed, perm=[0, 2, 1])
    mixed = mlp(graph, f"{name}/tokens", columns, model.gelu, params["tokens"])
    rows = graph.node("Transpose", f"{name}/tokens/rows", mixed, perm=[0, 2, 1])
    x = graph.node("Add", f"{name}/tokens/residual", x, rows)
    normed = graph.norm(f"{name}/norm2", x, **params["norm2"], epsilon=model.norm_eps)
    added = mlp(graph, f"{name}/channels", normed, model.gelu, params["channels"])
    return graph.node("Add", f"{name}/channels/residual", x, added)
