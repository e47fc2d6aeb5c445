"""Token merging in the exported graph: the live model's twin, at any batch, of operators that every runtime has."""

import dataclasses
import functools

import numpy as np
import onnx
import pytest

from serving.runtime.select import open_runtime
from tests.support.graphs import product_macs
from tests.support.small_families import DEIT, HYBRID
from tests.support.small_models import SMALL, UNEVEN, merging, random_params, smooth_images
from trainer.description import ViT, macs, without_merging
from trainer.export.graph import Array
from trainer.export.onnx_writer import INPUT, weight_products, write_onnx
from trainer.models.build import Params, bind


def _larger(model: ViT) -> ViT:
    """20 patches in place of 4."""
    return dataclasses.replace(model, image_size=(20, 16))


MODELS = {
    "gap": merging(_larger(SMALL), 3, 5),
    "cls, a block without an MLP among them": merging(_larger(UNEVEN), 3, 4, 0, 6),
    "distilled, as many as can be": merging(_larger(DEIT), 10, 5),
    "hybrid": merging(HYBRID, 3, 1),
    "no head": merging(dataclasses.replace(_larger(SMALL), num_classes=0), 0, 7),
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def _graph(name: str) -> onnx.ModelProto:
    return write_onnx(MODELS[name], random_params(MODELS[name]))


@functools.cache
def _live(name: str) -> tuple[Array, Array]:
    model = MODELS[name]
    images = smooth_images(model, 8)
    return images, np.asarray(bind(model, random_params(model))(images))


def _run(graph: onnx.ModelProto, images: Array) -> Array:
    (answer,) = open_runtime(graph.SerializeToString(), "onnxruntime", 1).run({INPUT: images}).values()
    return answer


@every_model
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_merging_graph_says_what_the_live_model_says_at_any_batch(name: str, batch: int) -> None:
    images, wanted = (array[:batch] for array in _live(name))
    # float32 sums in another order, as without merging; no two pairs are so nearly alike that the order would decide.
    np.testing.assert_allclose(_run(_graph(name), images), wanted, atol=5e-5)


@every_model
def test_merging_changes_what_the_model_says(name: str) -> None:
    model = MODELS[name]
    images, found = _live(name)
    assert np.abs(found - np.asarray(bind(without_merging(model), random_params(model))(images))).max() > 0.01


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.stem])
def test_macs_of_a_merging_model_are_those_of_its_graphs_products(name: str) -> None:
    assert product_macs(_graph(name)) == macs(MODELS[name])
    assert macs(MODELS[name]) < macs(without_merging(MODELS[name]))


def _all_alike(model: ViT) -> Params:
    """Every key is the first unit vector: all cosines are the same number, in every runtime."""
    params = random_params(model)
    for block in params["blocks"].values():
        key = {"kernel": np.zeros_like(block["attention"]["key"]["kernel"])}
        key["bias"] = np.zeros_like(block["attention"]["key"]["bias"])
        key["bias"][:, 0] = 1
        block["attention"]["key"] = key
    return params


@pytest.mark.parametrize("name", ["gap", "distilled, as many as can be", "hybrid"])
def test_of_pairs_that_are_exactly_alike_both_take_the_first(name: str) -> None:
    model = MODELS[name]
    params, images = _all_alike(model), smooth_images(model, 3)
    wanted = np.asarray(bind(model, params)(images))
    np.testing.assert_allclose(_run(write_onnx(model, params), images), wanted, atol=5e-5)  # as above


@every_model
def test_nothing_is_scattered_and_no_merging_product_would_be_quantized(name: str) -> None:
    graph = _graph(name)
    assert not [node.name for node in graph.graph.node if "Scatter" in node.op_type]
    assert not [product for product in weight_products(graph) if "/merge/" in product]
