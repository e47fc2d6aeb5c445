"""What can be read off an exported graph."""

import numpy as np
import onnx
from onnx import shape_inference


def product_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of all matrix products, for one image."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*graph.value_info, *graph.output):
        shapes[value.name] = tuple(
            d.dim_value or 1 for d in value.type.tensor_type.shape.dim
        )  # the batch counts as 1
    return sum(
        int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        for node in graph.node
        if node.op_type == "MatMul"
    )
