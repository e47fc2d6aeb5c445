"""The Vision Transformer as ONNX nodes: plain, hybrid, with a distillation token, with or without a head."""

import numpy as np

from trainer.description import ViT
from trainer.export.graph import Array, Graph
from trainer.export.signature import IMAGES
from trainer.export.writers.attention import keys
from trainer.export.writers.block import attend, transform
from trainer.export.writers.merging import log_sizes, merge, weighted_mean
from trainer.export.writers.patches import patch_products
from trainer.export.writers.stem import stem
from trainer.models.build import Params


def write_vit(graph: Graph, model: ViT, params: Params) -> str:
    """Images (B, H, W, C) → logits, or features where there is no head."""
    x, sizes = _encoded(graph, model, params, _tokens(graph, model, params))
    if model.distilled:
        return _two_heads(graph, model, params, x)
    x = _features(graph, model, params, x, sizes)
    return graph.dense("head", x, **params["head"]) if model.num_classes else x


def _encoded(graph: Graph, model: ViT, params: Params, x: str) -> tuple[str, str]:
    """The stream after all blocks, and the sizes of its tokens where some were merged, else empty."""
    sizes = mask = ""
    for index, (block, tokens) in enumerate(zip(model.blocks, model.tokens_by_block)):
        at, own = f"blocks/{index}", params["blocks"][str(index)]
        x = attend(graph, at, x, tokens, model, block, own, mask)
        if block.merge:
            read, merging = keys(f"{at}/attention"), f"{at}/merge"
            x, sizes = merge(
                graph, merging, x, sizes, read, tokens, model.width, block.merge, model.num_prefix
            )
            mask = log_sizes(graph, merging, sizes)
        x = transform(graph, at, x, model, block, own)
    return x, sizes


def _tokens(graph: Graph, model: ViT, params: Params) -> str:
    """Patches as products, plus one table that holds bias, positions and the tokens in front."""
    if model.stem:
        cells = stem(graph, model.stem, model.image_size, params["stem"])
        x = patch_products(graph, cells, model.stem_grid, model.patch_size, "NCHW", params["patch"])
    else:
        x = patch_products(graph, IMAGES, model.image_size, model.patch_size, "NHWC", params["patch"])
    if model.num_prefix:
        # Rows of zeros in front, filled by the table: the batch needs no Shape and Expand.
        pads = graph.weight("prefix/pads", np.array([model.num_prefix, 0]))
        x = graph.node("Pad", "prefix", x, pads, "", graph.weight("prefix/axes", np.array([1])))
    return graph.node("Add", "pos/add", x, graph.weight("pos", _table(model, params)))


def _table(model: ViT, params: Params) -> Array:
    table = np.array(params["pos"])
    table[:, model.num_prefix :] += np.asarray(params["patch"]["bias"])
    for row, token in enumerate(("cls", "dist")[: model.num_prefix]):
        table[:, row] += np.asarray(params[token])[:, 0]
    return table


def _features(graph: Graph, model: ViT, params: Params, x: str, sizes: str) -> str:
    if model.pooling == "cls":  # the norm is per token: only the class token needs it
        x = graph.pick("token", x, 0)
    x = graph.norm("norm", x, **params["norm"], epsilon=model.norm_eps)
    if model.pooling == "gap":
        return weighted_mean(graph, "mean", x, sizes, model.num_patches) if sizes else graph.mean("mean", x)
    return x


def _two_heads(graph: Graph, model: ViT, params: Params, x: str) -> str:
    """The mean of both tokens' answers, as one product: both tokens side by side, both halved kernels on top of each other."""
    x = graph.slice("token", x, [2], [1])
    x = graph.norm("norm", x, **params["norm"], epsilon=model.norm_eps)
    if not model.num_classes:
        return graph.mean("mean", x)
    heads = [{name: np.asarray(a) / 2 for name, a in params[head].items()} for head in ("head", "head_dist")]
    kernel = np.concatenate([head["kernel"] for head in heads])
    x = graph.reshape("head/tokens", x, [0, 2 * model.width])
    return graph.dense("head", x, kernel, heads[0]["bias"] + heads[1]["bias"])
