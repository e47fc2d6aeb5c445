"""Small real bundles of the two towers of a text-image pair, both of one layer; both answer embeddings that a test can compute."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from protos import bundle_pb2
from serving.bundle import Bundle, spec_to_proto, tokeniser_to_proto, write_bundle
from serving.tokenise import TokeniserSpec
from tests.support import bundles

VOCAB = ("[PAD]", "[CLS]", "[UNK]", "a", "cat", "dog", "photo", "of")
TOKENS, WIDTH = 6, 5
SCALE = 10.5
_VOCAB_BYTES = "\n".join(VOCAB).encode()
TOKENISER = TokeniserSpec("wordpiece", TOKENS, True, "vocab.txt", hashlib.sha256(_VOCAB_BYTES).hexdigest())
_TABLE = np.random.default_rng(3).normal(size=(len(VOCAB), WIDTH)).astype(np.float32)
_KERNEL = np.random.default_rng(4).normal(size=(bundles.SIZE**2, WIDTH)).astype(np.float32)


def tokens(count: int, seed: int = 1) -> np.ndarray:
    """Texts (count, TOKENS), int32."""
    return np.random.default_rng(seed).integers(0, len(VOCAB), (count, TOKENS), dtype=np.int32)


def text_embeddings(texts: np.ndarray) -> np.ndarray:
    """What the text tower answers to `texts`, up to the rounding of float32 sums."""
    return _TABLE[texts].sum(axis=1)


def image_embeddings(images: np.ndarray) -> np.ndarray:
    """What the image tower answers to `images` (B, 8, 8, 1), up to the rounding of float32 sums."""
    return images.reshape(len(images), -1) @ _KERNEL


def write_text_tower(repository: Path, name: str = "pair-text", version: int = 1) -> Bundle:
    """A tower of texts with its vocabulary at REPOSITORY/NAME/VERSION."""
    manifest = text_manifest()
    golden = tokens(2, seed=9)
    files = {"model.onnx": text_model(), "vocab.txt": _VOCAB_BYTES}
    target = repository / name / str(version)
    return write_bundle(target, manifest, files, {"tokens": golden}, {"embeddings": text_embeddings(golden)})


def write_image_tower(repository: Path, name: str = "pair-image", version: int = 1) -> Bundle:
    """The tower of images that belongs to it."""
    manifest = _manifest("images", "FP32", [-1, bundles.SIZE, bundles.SIZE, 1])
    manifest.preprocessing.CopyFrom(spec_to_proto(bundles.SPEC))
    golden = bundles.images(2, seed=9)
    target, files = repository / name / str(version), {"model.onnx": _image_model()}
    return write_bundle(target, manifest, files, {"images": golden}, {"embeddings": image_embeddings(golden)})


def text_manifest() -> bundle_pb2.Manifest:
    """What the text tower's bundle says, without the digests of its files."""
    manifest = _manifest("tokens", "INT32", [-1, TOKENS])
    manifest.inputs[0].values_below = len(VOCAB)
    manifest.tokeniser.CopyFrom(tokeniser_to_proto(TOKENISER))
    return manifest


def text_model() -> bytes:
    """ONNX: the sum of a table's rows, which an index beyond the table ends."""
    rows = helper.make_node("Gather", ["table", "tokens"], ["rows"], axis=0)
    total = helper.make_node("ReduceSum", ["rows", "axis"], ["embeddings"], keepdims=0)
    constants = {"table": _TABLE, "axis": np.array([1], np.int64)}
    return _model([rows, total], ("tokens", TensorProto.INT32, ["batch", TOKENS]), constants)


def _image_model() -> bytes:
    flat = helper.make_node("Reshape", ["images", "shape"], ["flat"])
    product = helper.make_node("MatMul", ["flat", "kernel"], ["embeddings"])
    constants = {"shape": np.array([-1, bundles.SIZE**2], np.int64), "kernel": _KERNEL}
    shape = ["batch", bundles.SIZE, bundles.SIZE, 1]
    return _model([flat, product], ("images", TensorProto.FLOAT, shape), constants)


def _model(
    nodes: list[onnx.NodeProto], taken: tuple[str, int, list[str | int]], constants: dict[str, np.ndarray]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info(*taken)],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _manifest(name: str, datatype: str, shape: list[int]) -> bundle_pb2.Manifest:
    return bundle_pb2.Manifest(
        name="tower",
        created_by="tests",
        inputs=[bundle_pb2.TensorSpec(name=name, datatype=datatype, shape=shape)],
        outputs=[bundle_pb2.TensorSpec(name="embeddings", datatype="FP32", shape=[-1, WIDTH])],
        batch_buckets=[1, 4],
        models=[
            bundle_pb2.ModelFile(
                file="model.onnx",
                runtime="onnxruntime",
                precision="fp32",
                tolerance=bundle_pb2.Tolerance(max_abs_difference=1e-4),
            )
        ],
        logit_scale=SCALE,
    )
