"""The text towers of LiT as ONNX nodes: tokens (B, T) int32 → embeddings."""

import numpy as np

from trainer.description import TextTower
from trainer.export.graph import Graph
from trainer.export.signature import TOKENS
from trainer.export.writers.block import post_norm_block, pre_norm_block
from trainer.models.build import Params

_MASKED = -1e10  # added: swallows the logit, so that padding, which may look nowhere, looks everywhere alike, as in the live model


def write_text(graph: Graph, model: TextTower, params: Params) -> str:
    """Tokens (B, T) → one embedding of each text, not normalised."""
    x = _bert(graph, model, params) if model.style == "bert" else _transformer(graph, model, params)
    return graph.dense("head", x, **params["head"]) if model.embed_dim else x


def _transformer(graph: Graph, model: TextTower, params: Params) -> str:
    x = _embedded(graph, model, params)
    for index, block in enumerate(model.blocks):
        own = params["blocks"][str(index)]
        x = pre_norm_block(graph, f"blocks/{index}", x, model.max_tokens, model, block, own)
    x = graph.pick("last", x, model.max_tokens - 1)  # the norm is per token: only the last one needs it
    return graph.norm("norm", x, **params["norm"], epsilon=model.norm_eps)


def _bert(graph: Graph, model: TextTower, params: Params) -> str:
    x = graph.norm(
        "embed_norm", _embedded(graph, model, params), **params["embed_norm"], epsilon=model.norm_eps
    )
    mask = _padding_mask(graph, model) if any(block.num_heads for block in model.blocks) else ""
    for index, block in enumerate(model.blocks):
        own = params["blocks"][str(index)]
        x = post_norm_block(graph, f"blocks/{index}", x, mask, model, block, own)
    return graph.pick("first", x, 0)


def _embedded(graph: Graph, model: TextTower, params: Params) -> str:
    """Rows of the token table, plus one table of positions, which holds BERT's first segment too."""
    table = np.asarray(params["pos"])[:, : model.max_tokens]
    if model.style == "bert":
        table = table + np.asarray(params["segment"])[0]
    x = graph.node("Gather", "token/rows", graph.weight("token", params["token"]), TOKENS, axis=0)
    return graph.node("Add", "pos/add", x, graph.weight("pos", table))


def _padding_mask(graph: Graph, model: TextTower) -> str:
    """(B, 1, T, T), for all attentions: padding, token 0, neither looks nor is looked at."""
    padding = graph.node("Equal", "mask/padding", TOKENS, graph.weight("mask/zero", np.array(0, np.int32)))
    looks = graph.reshape("mask/looks", padding, [0, 1, model.max_tokens, 1])
    seen = graph.reshape("mask/seen", padding, [0, 1, 1, model.max_tokens])
    masked, kept = (
        graph.weight("mask/masked", np.array(_MASKED, np.float32)),
        graph.weight("mask/kept", np.array(0.0, np.float32)),
    )
    return graph.node("Where", "mask", graph.node("Or", "mask/either", looks, seen), masked, kept)
