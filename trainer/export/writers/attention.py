"""Multi-head self-attention as ONNX nodes.

Query, key and value are one product (fewer, larger products), and the attention scale is folded into the query's weights.
"""

import numpy as np

from trainer.description import Block
from trainer.export.graph import Array, Graph
from trainer.models.build import Params


def attention(
    graph: Graph, at: str, x: str, num_tokens: int, block: Block, params: Params, mask: str = ""
) -> str:
    """(B, T, D) → (B, T, D), of what was normalised already.

    `mask` (B, 1, T, T), or (B, 1, 1, T) for all alike, is added to the logits where there is one.
    """
    heads, dims = block.num_heads, (block.qk_dim, block.qk_dim, block.v_dim)
    joined = graph.dense(f"{at}/qkv", x, *_joined_projections(block, params))
    parts = graph.split(f"{at}/split", joined, [heads * dim for dim in dims])

    def per_head(part: int, label: str, order: list[int]) -> str:
        shaped = graph.reshape(f"{at}/{label}/heads", parts[part], [0, num_tokens, heads, dims[part]])
        return graph.node("Transpose", f"{at}/{label}", shaped, perm=order)

    query, key, value = (
        per_head(0, "query", [0, 2, 1, 3]),
        per_head(1, "key", [0, 2, 3, 1]),
        per_head(2, "value", [0, 2, 1, 3]),
    )
    logits = graph.node("MatMul", f"{at}/logits", query, key)
    if mask:
        logits = graph.node("Add", f"{at}/masked", logits, mask)
    weights = graph.node("Softmax", f"{at}/softmax", logits, axis=-1)
    mixed = graph.node(
        "Transpose", f"{at}/tokens", graph.node("MatMul", f"{at}/mix", weights, value), perm=[0, 2, 1, 3]
    )
    rows = graph.reshape(f"{at}/joined", mixed, [0, num_tokens, heads * block.v_dim])
    out = np.asarray(params["out"]["kernel"])
    return graph.dense(f"{at}/out", rows, out.reshape(-1, out.shape[-1]), params["out"]["bias"])


def keys(at: str) -> str:
    """The keys (B, T, N, K) of the attention that was written at `at`."""
    return f"{at}/key/heads"


def _joined_projections(block: Block, params: Params) -> tuple[Array, Array]:
    """Kernel (D, N·(2K + V)) and bias of query, key and value side by side."""
    scaled = [
        {name: np.asarray(array) * scale for name, array in params[part].items()}
        for part, scale in (("query", block.qk_dim**-0.5), ("key", 1.0), ("value", 1.0))
    ]
    kernel = np.concatenate([layer["kernel"].reshape(len(layer["kernel"]), -1) for layer in scaled], axis=1)
    return kernel, np.concatenate([layer["bias"].reshape(-1) for layer in scaled])
