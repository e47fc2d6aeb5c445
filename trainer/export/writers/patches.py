"""The patch embedding as ONNX nodes: its convolution as a product with rows of patches, which quantizes as dense layers do."""

from typing import Literal

import numpy as np

from trainer.export.graph import Graph
from trainer.models.build import Params

# For each layout: the axes of height and width, and of (B, rows, p, columns, p, C) those in the order of patches and kernel.
_AXES = {"NHWC": ([1, 2], [0, 1, 3, 2, 4, 5]), "NCHW": ([2, 3], [0, 2, 4, 3, 5, 1])}


def patch_products(
    graph: Graph,
    x: str,
    size: tuple[int, int],
    patch_size: int,
    layout: Literal["NHWC", "NCHW"],
    params: Params,
) -> str:
    """`x` of `size` (H, W) pixels or cells → (B, P, D) without the bias; what fills no patch is cut off."""
    p, channels, width = patch_size, *np.asarray(params["kernel"]).shape[2:]
    rows, columns = size[0] // p, size[1] // p
    axes, order = _AXES[layout]
    if (rows * p, columns * p) != size:
        x = graph.slice("patch/crop", x, [rows * p, columns * p], axes)
    split = [rows, p, columns, p]
    x = graph.reshape("patch/grid", x, [0, *split, channels] if layout == "NHWC" else [0, channels, *split])
    x = graph.node("Transpose", "patch/group", x, perm=order)
    x = graph.reshape("patch/rows", x, [0, rows * columns, p * p * channels])
    kernel = np.asarray(params["kernel"]).reshape(p * p * channels, width)
    return graph.node("MatMul", "patch/matmul", x, graph.weight("patch/kernel", kernel))
