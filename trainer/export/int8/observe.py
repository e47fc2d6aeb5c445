"""What goes into the products while calibration images pass through the float graph, in the runtime that will serve.

The graph itself reduces it to extremes and a sample of rows, so that whole activations never leave the runtime.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.command import progress
from serving.runtime.select import open_runtime
from trainer.export.graph import Array
from trainer.export.int8.products import Product, by_tensor

_BATCH = 16
_ROWS = 1024  # of each tensor, at least, where the images have so many tokens
_END = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Seen:
    """Of one tensor (…, C): least and greatest value of each channel over all images (C,), and some of its rows (R, C)."""

    least: Array
    greatest: Array
    rows: Array


def observe(
    model: onnx.ModelProto, products: Sequence[Product], images: Array, threads: int
) -> dict[str, Seen]:
    """What feeds `products`, by tensor, over normalised `images` (N, H, W, C) or tokens (N, T)."""
    tensors = list(by_tensor(products))
    runtime = open_runtime(_watched(model, tensors, len(images)).SerializeToString(), "onnxruntime", threads)
    asked = model.graph.input[0].name
    seen, starts = [], range(0, len(images), _BATCH)
    with progress(len(starts), "calibration") as bar:
        for start in starts:
            seen.append(runtime.run({asked: images[start : start + _BATCH]}))
            bar.advance()
    runtime.close()
    return {
        tensor: Seen(
            np.min([batch[f"{tensor}/least"] for batch in seen], axis=0),
            np.max([batch[f"{tensor}/greatest"] for batch in seen], axis=0),
            np.concatenate([batch[f"{tensor}/rows"] for batch in seen]),
        )
        for tensor in tensors
    }


def _watched(model: onnx.ModelProto, tensors: Sequence[str], images: int) -> onnx.ModelProto:
    """`model` with three more outputs for each of `tensors`."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph, a_batch = watched.graph, max(1, _ROWS * min(_BATCH, images) // images)
    constants = {
        "watch/first": [0],
        "watch/one": [1],
        "watch/end": [_END],
        "watch/rows": [a_batch],
    }
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    for tensor in tensors:
        _watch(graph, tensor)
    return watched


def _watch(graph: onnx.GraphProto, tensor: str) -> None:
    def node(operator: str, label: str, *inputs: str, **attributes: Any) -> str:
        name = f"{tensor}/{label}"
        graph.node.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    flat = node("Flatten", "flat", tensor, axis=-1)  # (every token of every image, C)
    node("ReduceMin", "least", flat, "watch/first", keepdims=0)
    node("ReduceMax", "greatest", flat, "watch/first", keepdims=0)
    count = node("Shape", "count", flat, start=0, end=1)
    step = node("Max", "step", node("Div", "apart", count, "watch/rows"), "watch/one")
    node("Slice", "rows", flat, "watch/first", "watch/end", "watch/first", step)
    for label, shape in (("least", [None]), ("greatest", [None]), ("rows", [None, None])):
        graph.output.append(helper.make_tensor_value_info(f"{tensor}/{label}", TensorProto.FLOAT, shape))
