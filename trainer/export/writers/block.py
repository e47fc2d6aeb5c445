"""Encoder blocks as ONNX nodes: pre-LayerNorm as ViTs have them, post-LayerNorm as BERT has them."""

from trainer.description import Block, TextTower, ViT
from trainer.export.graph import Graph
from trainer.export.writers.attention import attention
from trainer.export.writers.mlp import mlp
from trainer.models.build import Params


def pre_norm_block(
    graph: Graph, name: str, x: str, num_tokens: int, model: ViT | TextTower, block: Block, params: Params
) -> str:
    """x + attention(norm(x)), then x + mlp(norm(x)); either branch may be absent."""
    x = attend(graph, name, x, num_tokens, model, block, params)
    return transform(graph, name, x, model, block, params)


def attend(
    graph: Graph,
    name: str,
    x: str,
    num_tokens: int,
    model: ViT | TextTower,
    block: Block,
    params: Params,
    mask: str = "",
) -> str:
    """x + attention(norm(x)); x where the branch is absent."""
    if not block.num_heads:
        return x
    normed = graph.norm(f"{name}/norm1", x, **params["norm1"], epsilon=model.norm_eps)
    added = attention(graph, f"{name}/attention", normed, num_tokens, block, params["attention"], mask)
    return graph.node("Add", f"{name}/attention/residual", x, added)


def transform(graph: Graph, name: str, x: str, model: ViT | TextTower, block: Block, params: Params) -> str:
    """x + mlp(norm(x)); x where the branch is absent."""
    if not block.mlp_dim:
        return x
    normed = graph.norm(f"{name}/norm2", x, **params["norm2"], epsilon=model.norm_eps)
    added = mlp(graph, f"{name}/mlp", normed, model.gelu, params["mlp"])
    return graph.node("Add", f"{name}/mlp/residual", x, added)


def post_norm_block(
    graph: Graph, name: str, x: str, mask: str, model: TextTower, block: Block, params: Params
) -> str:
    """norm(x + attention(x)), then norm(x + mlp(x)); either branch may be absent, with its norm."""
    if block.num_heads:
        added = attention(graph, f"{name}/attention", x, model.max_tokens, block, params["attention"], mask)
        x = graph.node("Add", f"{name}/attention/residual", x, added)
        x = graph.norm(f"{name}/norm1", x, **params["norm1"], epsilon=model.norm_eps)
    if block.mlp_dim:
        x = graph.node(
            "Add", f"{name}/mlp/residual", x, mlp(graph, f"{name}/mlp", x, model.gelu, params["mlp"])
        )
        x = graph.norm(f"{name}/norm2", x, **params["norm2"], epsilon=model.norm_eps)
    return x
