"""Weights stored as int8: near their float values, a quarter of the bytes, float arithmetic once the file is loaded."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from serving.runtime.select import open_runtime
from tests.support.small_families import DEIT, HYBRID, MIXER
from tests.support.small_models import SMALL, UNEVEN, random_params, smooth_images
from trainer.description import Classifier
from trainer.export.int8.rounding import codes_of
from trainer.export.int8.weights_only import store_int8_weights
from trainer.export.onnx_writer import INPUT, OUTPUT, weight_products, write_onnx

MODELS = pytest.mark.parametrize(
    "model", [SMALL, UNEVEN, DEIT, HYBRID, MIXER], ids=["even", "uneven", "DeiT", "hybrid", "Mixer"]
)


@MODELS
def test_answers_are_those_of_a_float_graph_with_the_rounded_weights(model: Classifier) -> None:
    graph = write_onnx(model, random_params(model))
    stored, products = store_int8_weights(graph), set(weight_products(graph))
    names = {node.input[1] for node in graph.graph.node if node.name in products}
    assert products
    for leaf in graph.graph.initializer:
        if leaf.name in names:
            codes, scales = codes_of(numpy_helper.to_array(leaf))
            leaf.CopyFrom(numpy_helper.from_array(codes * scales, leaf.name))
    images = smooth_images(model, 5)
    want, got = (open_runtime(one.SerializeToString(), "onnxruntime", 1) for one in (graph, stored))
    np.testing.assert_allclose(
        got.run({INPUT: images})[OUTPUT], want.run({INPUT: images})[OUTPUT], rtol=1e-5, atol=1e-5
    )


def test_every_weight_is_within_half_a_step_and_a_column_of_zeros_stays_zero() -> None:
    kernel = np.random.default_rng(0).standard_normal((31, 6), np.float32) * 10.0 ** np.arange(-3, 3)
    kernel = kernel.astype(np.float32)
    kernel[:, 2] = 0
    codes, scales = codes_of(kernel)
    assert codes.dtype == np.int8
    assert scales.shape == (6,)
    assert np.all(np.abs(codes * scales - kernel) <= scales * 0.5001)
    assert not np.any(codes[:, 2])
    assert np.all(np.abs(codes).max(axis=0)[[0, 1, 3, 4, 5]] == 127)


@MODELS
def test_the_runtime_makes_the_weights_float_once_when_it_loads(model: Classifier, tmp_path: Path) -> None:
    stored = store_int8_weights(write_onnx(model, random_params(model)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(stored.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    assert "Cast" in {node.op_type for node in stored.graph.node}
    assert "Cast" not in {node.op_type for node in loaded.graph.node}
    assert not [leaf for leaf in loaded.graph.initializer if leaf.data_type == onnx.TensorProto.INT8]
