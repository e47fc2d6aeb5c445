"""A thin builder of ONNX graphs: nodes whose names explain themselves, weights beside them."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]


OPSET = 20  # Gelu as one node came with 20; every runtime that we serve on knows it
_IR_VERSION = 10  # newer files would be refused by runtimes that know opset 20 well


class Graph:
    """Nodes and initialisers in the order in which they were added; every method returns the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, value: Array) -> str:
        """An initialiser, float32 unless it holds integers (shapes, axes)."""
        kind = np.int64 if np.issubdtype(np.asarray(value).dtype, np.integer) else np.float32
        self._weights[name] = numpy_helper.from_array(np.array(value, dtype=kind), name)
        return name

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, which carries the node's name."""
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, name: str, value: str, sizes: list[int]) -> list[str]:
        """`value` cut along its last axis into parts of `sizes`."""
        outputs = [f"{name}/{index}" for index in range(len(sizes))]
        inputs = [value, self.weight(f"{name}/sizes", np.array(sizes))]
        self._nodes.append(helper.make_node("Split", inputs, outputs, name=name, axis=-1))
        return outputs

    def dense(self, name: str, value: str, kernel: Array, bias: Array) -> str:
        """MatMul and Add: the form that runtimes fuse and quantize."""
        product = self.node("MatMul", f"{name}/matmul", value, self.weight(f"{name}/kernel", kernel))
        return self.node("Add", f"{name}/add", product, self.weight(f"{name}/bias", bias))

    def norm(self, name: str, value: str, scale: Array, bias: Array, epsilon: float) -> str:
        """LayerNormalization over the last axis, as one node."""
        weights = (self.weight(f"{name}/scale", scale), self.weight(f"{name}/bias", bias))
        return self.node("LayerNormalization", name, value, *weights, axis=-1, epsilon=epsilon)

    def reshape(self, name: str, value: str, shape: list[int]) -> str:
        """Reshape; 0 keeps an axis, which is how the batch stays dynamic."""
        return self.node("Reshape", name, value, self.weight(f"{name}/shape", np.array(shape)))

    def model(
        self, inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]
    ) -> onnx.ModelProto:
        """The finished model, checked, with the shapes of all tensors inferred.

        The last node added for each name in `outputs` must carry that name.
        """
        ends = [
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                for name, shape in group.items()
            ]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "vitforge", ends[0], ends[1], list(self._weights.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="vitforge"
        )
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)
