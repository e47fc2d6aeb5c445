"""Small real bundles for tests of the server: an ONNX model of one layer, written by the same function as exported ones.

The model takes grey 8 × 8 images and is linear, so that a test can compute its answer by itself (`logits`). Options make it
slow, or make it fail on a chosen pixel.
"""

import functools
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from protos import bundle_pb2
from serving.bundle import MANIFEST, SUMS, Bundle, spec_to_proto, write_bundle
from serving.preprocess import PreprocessSpec

SIZE, CLASSES = 8, 10
SPEC = PreprocessSpec(color="L", height=SIZE, width=SIZE, mean=(127.5,), std=(127.5,), method="bilinear")
LABELS = tuple(f"digit {index}" for index in range(CLASSES))
# What the int8 file of `write_tiny` adds to each logit, so that a test sees which file answered.
INT8_SHIFT = 0.25
# A first pixel above this makes a fragile model fail; no image reaches it.
FRAGILE_ABOVE = 100.0
_SLOW_WIDTH = 1024


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest of a bundle as its owner could: what SHA256SUMS says of it is brought up to date."""
    values = json.loads((path / MANIFEST).read_text())
    change(values)
    (path / MANIFEST).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    digests = {name: digest.removeprefix("sha256:") for name, digest in values.get("digests", {}).items()}
    digests[MANIFEST] = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    (path / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


@functools.cache
def _weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(SIZE * SIZE, CLASSES)).astype(np.float32), rng.normal(size=CLASSES).astype(
        np.float32
    )


def logits(images: np.ndarray) -> np.ndarray:
    """What a tiny model answers to `images` (B, 8, 8, 1), up to the rounding of float32 sums."""
    kernel, bias = _weights()
    return images.reshape(len(images), -1) @ kernel + bias


def images(count: int, seed: int = 1) -> np.ndarray:
    """Prepared images (count, 8, 8, 1), float32."""
    return np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, 1)).astype(np.float32)


def png(height: int = 24, width: int = 24, seed: int = 0, color: bool = False) -> bytes:
    """A PNG file of noise."""
    shape = (height, width, 3) if color else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class _Graph:
    """An ONNX graph as it grows: each method adds a node and returns the name of its output."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name


def _model(shift: float, slow_steps: int, fragile: bool) -> bytes:
    graph = _Graph([], [])
    kernel, bias = _weights()
    flat = graph.node("Reshape", "images", graph.constant(np.array([-1, SIZE * SIZE], np.int64)))
    if slow_steps:
        flat = _slowed(graph, flat, slow_steps)
    if fragile:
        flat = _fragile(graph, flat)
    product = graph.node("MatMul", flat, graph.constant(kernel))
    graph.node("Add", product, graph.constant(bias + np.float32(shift)), output="logits")
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", SIZE, SIZE, 1])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _slowed(graph: _Graph, flat: str, steps: int) -> str:
    """`flat` after `steps` products with a large matrix, of which it keeps nothing: 0.05 ms each on a fast machine."""
    widen = graph.constant(np.full((SIZE * SIZE, _SLOW_WIDTH), 1e-3, np.float32))
    mix = graph.constant(np.full((_SLOW_WIDTH, _SLOW_WIDTH), 1 / _SLOW_WIDTH, np.float32))
    narrow = graph.constant(np.zeros((_SLOW_WIDTH, SIZE * SIZE), np.float32))
    wide = graph.node("MatMul", flat, widen)
    for _ in range(steps):
        wide = graph.node("MatMul", wide, mix)
    return graph.node("Add", flat, graph.node("MatMul", wide, narrow))


def _fragile(graph: _Graph, flat: str) -> str:
    """`flat`, unless its first column is beyond FRAGILE_ABOVE: looking that up in too short a table fails."""
    zero, one, axis = (graph.constant(np.array([value], np.int64)) for value in (0, 1, 1))
    first = graph.node("Slice", flat, zero, one, axis)
    index = graph.node("Cast", graph.node("Abs", first), to=TensorProto.INT64)
    table = graph.constant(np.zeros(int(FRAGILE_ABOVE), np.float32))
    return graph.node("Add", flat, graph.node("Gather", table, index, axis=0))


def write_tiny(
    repository: Path, name: str = "tiny", version: int = 1, *, slow_steps: int = 0, fragile: bool = False
) -> Bundle:
    """Writes a bundle with an fp32 and an "int8" file at REPOSITORY/NAME/VERSION."""
    manifest = bundle_pb2.Manifest(
        name=name,
        created_by="tests",
        inputs=[bundle_pb2.TensorSpec(name="images", datatype="FP32", shape=[-1, SIZE, SIZE, 1])],
        outputs=[bundle_pb2.TensorSpec(name="logits", datatype="FP32", shape=[-1, CLASSES])],
        preprocessing=spec_to_proto(SPEC),
        labels=LABELS,
        batch_buckets=[1, 2, 4, 8],
        models=[_file("model.onnx", "fp32", 1e-3), _file("model.int8.onnx", "int8", 2 * INT8_SHIFT)],
    )
    files = {
        "model.onnx": _model(0.0, slow_steps, fragile),
        "model.int8.onnx": _model(INT8_SHIFT, slow_steps, fragile),
    }
    golden = images(2, seed=9)
    return write_bundle(
        repository / name / str(version), manifest, files, {"images": golden}, {"logits": logits(golden)}
    )


def _file(name: str, precision: str, max_abs_difference: float) -> bundle_pb2.ModelFile:
    return bundle_pb2.ModelFile(
        file=name,
        runtime="onnxruntime",
        precision=precision,
        tolerance=bundle_pb2.Tolerance(max_abs_difference=max_abs_difference, min_top1_agreement=1.0),
    )
