"""A thin builder of ONNX graphs: nodes whose names explain themselves, weights beside them."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trainer.export.signature import Signature, Tensor

Array = np.ndarray[Any, np.dtype[Any]]


OPSET = 20  # Gelu as one node came with 20; every runtime that we serve on knows it
_IR_VERSION = 10  # newer files would be refused by runtimes that know opset 20 well
_TYPES = {"FP32": onnx.TensorProto.FLOAT, "INT32": onnx.TensorProto.INT32}


class Graph:
    """Nodes and initialisers in the order in which they were added; every method returns the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, value: Array) -> str:
        """An initialiser: float32, or int64 (shapes, axes) and int32 (tokens) where it holds integers."""
        array = np.asarray(value)
        if array.dtype != np.int32:
            array = np.array(array, np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)
        self._weights[name] = numpy_helper.from_array(array, name)
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

    def top(self, name: str, value: str, count: int) -> str:
        """The places of the `count` greatest along the last axis, greatest first; of equals the first."""
        outputs = [f"{name}/values", name]
        inputs = [value, self.weight(f"{name}/count", np.array([count]))]
        self._nodes.append(helper.make_node("TopK", inputs, outputs, name=name))
        return name

    def rows(self, name: str, value: str, places: str) -> str:
        """(B, T, D) at `places` (B, R) → (B, R, D), each image's own."""
        indices = self.node("Unsqueeze", f"{name}/places", places, self.weight(f"{name}/axis", np.array([2])))
        return self.node("GatherND", name, value, indices, batch_dims=1)

    def every(self, name: str, value: str, start: int, step: int) -> str:
        """(B, T, …) → every `step`-th from `start` on of axis 1."""
        bounds = {"start": start, "end": np.iinfo(np.int64).max, "axis": 1, "step": step}
        return self.node(
            "Slice",
            name,
            value,
            *(self.weight(f"{name}/{part}", np.array([at])) for part, at in bounds.items()),
        )

    def slice(self, name: str, value: str, ends: list[int], axes: list[int]) -> str:
        """The first `ends` along `axes`."""
        bounds = {"starts": [0] * len(ends), "ends": ends, "axes": axes}
        inputs = [self.weight(f"{name}/{part}", np.array(given)) for part, given in bounds.items()]
        return self.node("Slice", name, value, *inputs)

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

    def pick(self, name: str, value: str, index: int) -> str:
        """(B, T, …) → (B, …), what stands at `index` of axis 1."""
        return self.node("Gather", name, value, self.weight(f"{name}/index", np.array(index)), axis=1)

    def mean(self, name: str, value: str) -> str:
        """(B, T, …) → (B, …), the mean over axis 1."""
        return self.node("ReduceMean", name, value, self.weight(f"{name}/axes", np.array([1])), keepdims=0)

    def model(self, signature: Signature, result: str) -> onnx.ModelProto:
        """The finished model, checked, with the shapes of all tensors inferred; `result` gets the output's name."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [signature.output.name if name == result else name for name in names]
        model = self._checked(signature)
        model.graph.initializer.extend(self._floats())
        return model

    def _checked(self, signature: Signature) -> onnx.ModelProto:
        """The model without its float weights, whose values play no part in checks: each would copy a gigabyte of them twice."""
        floats = self._floats()
        absent = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in floats]
        inputs, outputs = [_value(signature.input), *absent], [_value(signature.output)]
        present = [w for w in self._weights.values() if w.data_type != onnx.TensorProto.FLOAT]
        graph = helper.make_graph(self._nodes, "vitforge", inputs, outputs, present)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="vitforge")
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.input[1:]
        return model

    def _floats(self) -> list[onnx.TensorProto]:
        return [weight for weight in self._weights.values() if weight.data_type == onnx.TensorProto.FLOAT]


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    shape = ["batch" if size < 0 else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.datatype], shape)
