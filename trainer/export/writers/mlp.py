"""Two dense layers with GELU between them, as ONNX nodes."""

from trainer.export.graph import Graph
from trainer.models.build import Params


def mlp(graph: Graph, at: str, x: str, gelu: str, params: Params) -> str:
    """The MLP of `params` on the last axis of `x`, which was normalised already."""
    fc1, fc2 = params["fc1"], params["fc2"]
    hidden = graph.dense(f"{at}/fc1", x, fc1["kernel"], fc1["bias"])
    hidden = graph.node("Gelu", f"{at}/gelu", hidden, approximate="tanh" if gelu == "tanh" else "none")
    return graph.dense(f"{at}/fc2", hidden, fc2["kernel"], fc2["bias"])
