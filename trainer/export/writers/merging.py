"""Token merging as ONNX nodes: see `trainer.models.merging`, whose twin this is.

Rows are gathered, and added where they go by a product with one-hot rows: runtimes differ in how they scatter, and some cannot.

Shapes: B batch, T tokens, D width, N heads, K key dim, r pairs.
"""

import numpy as np

from trainer.export.graph import Graph
from trainer.models.merging import NORM_EPS


def merge(
    graph: Graph, at: str, x: str, sizes: str, keys: str, num_tokens: int, width: int, count: int, prefix: int
) -> tuple[str, str]:
    """The stream `x` (B, T, D) with `count` pairs merged, (B, T - r, D), and the sizes of its tokens, (B, T - r, 1).

    `sizes` is empty as long as every token stands for one patch; `keys` are (B, T, N, K).
    """
    gone, into = _matches(graph, at, keys, count, prefix)
    one = graph.weight(f"{at}/one", np.array(1, np.float32))
    pads = (graph.weight(f"{at}/pads", np.array([0, 1])), one, graph.weight(f"{at}/channels", np.array([2])))
    weighted = graph.node("Pad", f"{at}/with_size", x, *pads)
    if sizes:
        weighted = graph.node("Mul", f"{at}/weighted", weighted, sizes)
    leaving = graph.rows(f"{at}/leaving", weighted, gone)
    added = graph.node("MatMul", f"{at}/add", _one_hot(graph, f"{at}/into", into, num_tokens), leaving)
    total = graph.node("Add", f"{at}/total", weighted, added)
    merged = graph.rows(f"{at}/merged", total, _kept(graph, at, gone, one, num_tokens, count))
    sums, sizes = graph.split(f"{at}/sums", merged, [width, 1])
    return graph.node("Div", f"{at}/means", sums, sizes), sizes


def _matches(graph: Graph, at: str, keys: str, count: int, prefix: int) -> tuple[str, str]:
    """The places (B, r) of the tokens that leave, and of those that they go into."""
    last = graph.weight(f"{at}/last", np.array([-1]))
    keys = graph.node(
        "ReduceMean", f"{at}/keys", keys, graph.weight(f"{at}/heads", np.array([2])), keepdims=0
    )
    epsilon = graph.weight(f"{at}/epsilon", np.array(NORM_EPS, np.float32))
    length = graph.node("Add", f"{at}/divisor", graph.node("ReduceL2", f"{at}/length", keys, last), epsilon)
    keys = graph.node("Div", f"{at}/directions", keys, length)
    between = graph.node(
        "Transpose", f"{at}/between", graph.every(f"{at}/odd", keys, prefix + 1, 2), perm=[0, 2, 1]
    )
    alike = graph.node("MatMul", f"{at}/alike", graph.every(f"{at}/even", keys, prefix, 2), between)
    best = graph.node("ReduceMax", f"{at}/best", alike, last, keepdims=0)
    chosen = graph.top(f"{at}/chosen", best, count)
    nearest = graph.node("ArgMax", f"{at}/nearest", alike, axis=-1, keepdims=0)
    nearest = graph.node("GatherElements", f"{at}/chosen_nearest", nearest, chosen, axis=1)
    return _place(graph, f"{at}/gone", chosen, prefix), _place(graph, f"{at}/goal", nearest, prefix + 1)


def _place(graph: Graph, name: str, index: str, first: int) -> str:
    """Among all tokens, what is `index` among every other one from `first` on."""
    doubled = graph.node("Mul", f"{name}/doubled", index, graph.weight(f"{name}/step", np.array(2)))
    return graph.node("Add", name, doubled, graph.weight(f"{name}/first", np.array(first)))


def _kept(graph: Graph, at: str, gone: str, one: str, num_tokens: int, count: int) -> str:
    """The places (B, T - r) of the tokens that stay, in their order."""
    leaves = graph.node(
        "ReduceSum",
        f"{at}/leaves",
        _one_hot(graph, f"{at}/from", gone, num_tokens),
        graph.weight(f"{at}/pairs", np.array([2])),
        keepdims=0,
    )
    order = graph.weight(f"{at}/order", np.arange(num_tokens, 0, -1).astype(np.float32))
    worth = graph.node("Mul", f"{at}/worth", graph.node("Sub", f"{at}/stays", one, leaves), order)
    return graph.top(f"{at}/kept", worth, num_tokens - count)


def _one_hot(graph: Graph, name: str, places: str, num_tokens: int) -> str:
    """Places (B, r) → (B, T, r)."""
    depth = graph.weight(f"{name}/depth", np.array(num_tokens))
    return graph.node(
        "OneHot", name, places, depth, graph.weight(f"{name}/values", np.array([0, 1], np.float32)), axis=1
    )


def log_sizes(graph: Graph, at: str, sizes: str) -> str:
    """(B, T, 1) → (B, 1, 1, T), added to the logits of attention."""
    return graph.reshape(f"{at}/log_sizes", graph.node("Log", f"{at}/log", sizes), [0, 1, 1, -1])


def weighted_mean(graph: Graph, name: str, x: str, sizes: str, num_patches: int) -> str:
    """(B, T, D) → (B, D), the mean over all patches, by the sizes (B, T, 1) of the tokens that stand for them."""
    share = graph.weight(f"{name}/share", np.array(1 / num_patches, np.float32))
    parts = graph.node("Mul", f"{name}/parts", x, graph.node("Mul", f"{name}/shares", sizes, share))
    return graph.node("ReduceSum", name, parts, graph.weight(f"{name}/axes", np.array([1])), keepdims=0)
