import dataclasses
import functools
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serving.command import UserError
from serving.runtime.select import open_runtime
from tests.support.graphs import product_macs
from tests.support.small_models import SMALL, UNEVEN, logits, random_params, smooth_images
from trainer.description import Block, ViT, macs, named, param_count
from trainer.export.graph import Array
from trainer.export.onnx_writer import INPUT, OUTPUT, weight_products, write_onnx

MODELS = {
    "gap, erf": SMALL,
    "cls, tanh": dataclasses.replace(SMALL, pooling="cls", gelu="tanh"),
    "uneven, cls": UNEVEN,
    "uneven, gap, tanh": dataclasses.replace(UNEVEN, pooling="gap", gelu="tanh"),
    "colour, image no multiple of the patch": dataclasses.replace(SMALL, image_size=(11, 14), channels=3),
    "no blocks": dataclasses.replace(SMALL, blocks=()),
    "another epsilon": dataclasses.replace(SMALL, norm_eps=0.1),
}
FOLDED = {"patch/bias", "cls"}  # live in the table of positions


@functools.cache
def _graph(name: str) -> onnx.ModelProto:
    return write_onnx(MODELS[name], random_params(MODELS[name]))


every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def _live(name: str) -> tuple[Array, Array]:
    """Eight images and what the live model says to them."""
    model = MODELS[name]
    images = smooth_images(model, 8)
    return images, logits(model, random_params(model), images)


@every_model
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_graph_says_what_the_live_model_says_at_any_batch(name: str, batch: int) -> None:
    images, wanted = (array[:batch] for array in _live(name))
    found = open_runtime(_graph(name).SerializeToString(), "onnxruntime", 1).run({INPUT: images})[OUTPUT]
    assert found.shape == (batch, 10)
    # float32 sums of up to 40 products in another order, some layers deep; logits are about 10.
    np.testing.assert_allclose(found, wanted, atol=5e-5)


def _expected_operators(model: ViT) -> Counter[str]:
    """Every operator of a graph, by its description."""
    attentions, mlps = (
        sum(bool(size) for size in sizes) for sizes in zip(*((b.num_heads, b.mlp_dim) for b in model.blocks))
    )
    cls, crop = model.pooling == "cls", any(side % model.patch_size for side in model.image_size)
    return Counter(
        LayerNormalization=attentions + mlps + 1,
        Gelu=mlps,
        Softmax=attentions,
        # query, key and value at once, logits, mix, output; two of an MLP; patches and classifier.
        MatMul=4 * attentions + 2 * mlps + 2,
        # biases of two dense layers and the residual of a branch; positions; classifier's bias.
        Add=3 * attentions + 3 * mlps + 2,
        Split=attentions,
        Reshape=4 * attentions + 2,
        Transpose=4 * attentions + 1,
        Pad=int(cls),
        Gather=int(cls),
        ReduceMean=int(not cls),
        Slice=int(crop),
    )


@pytest.mark.parametrize("name", [name for name in MODELS if name != "no blocks"])
def test_operators_are_exactly_the_expected_ones_so_that_runtimes_can_fuse_and_quantize(name: str) -> None:
    found = Counter(node.op_type for node in _graph(name).graph.node)
    assert found == +_expected_operators(MODELS[name])


def test_gelu_and_epsilon_are_the_models_own() -> None:
    def attribute(name: str, operator: str, key: str) -> set[object]:
        nodes = (node for node in _graph(name).graph.node if node.op_type == operator)
        return {onnx.helper.get_node_attr_value(node, key) for node in nodes}

    assert attribute("gap, erf", "Gelu", "approximate") == {b"none"}
    assert attribute("cls, tanh", "Gelu", "approximate") == {b"tanh"}
    assert attribute("gap, erf", "LayerNormalization", "epsilon") == {float(np.float32(1e-6))}
    assert attribute("another epsilon", "LayerNormalization", "epsilon") == {float(np.float32(0.1))}


@every_model
def test_parameters_of_the_description_are_those_of_the_graph_but_for_what_is_folded(name: str) -> None:
    model = MODELS[name]
    weights = [w for w in _graph(name).graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    counted = sum(numpy_helper.to_array(weight).size for weight in weights)
    # The patch bias (D) and the class token (D) are added into the table of positions.
    folded = model.width + (model.width if model.pooling == "cls" else 0)
    assert counted + folded == param_count(model)
    assert not FOLDED & {weight.name for weight in weights}


@every_model
def test_macs_of_the_description_are_those_of_the_graphs_products(name: str) -> None:
    assert product_macs(_graph(name)) == macs(MODELS[name])


def test_the_batch_is_free_at_both_ends_and_nothing_else_is() -> None:
    graph = _graph("gap, erf").graph
    for value, rest in ((graph.input[0], [8, 8, 1]), (graph.output[0], [10])):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert [dim.dim_value for dim in others] == rest
    assert [value.name for value in (*graph.input, *graph.output)] == [INPUT, OUTPUT]


def test_weight_products_are_all_dense_layers_and_patches_but_not_the_classifier() -> None:
    assert weight_products(_graph("uneven, cls")) == [
        "patch/matmul",
        *(
            "blocks/0/attention/qkv/matmul",
            "blocks/0/attention/out/matmul",
            "blocks/0/mlp/fc1/matmul",
            "blocks/0/mlp/fc2/matmul",
        ),
        *("blocks/1/attention/qkv/matmul", "blocks/1/attention/out/matmul"),
        *("blocks/2/mlp/fc1/matmul", "blocks/2/mlp/fc2/matmul"),
        *(
            "blocks/3/attention/qkv/matmul",
            "blocks/3/attention/out/matmul",
            "blocks/3/mlp/fc1/matmul",
            "blocks/3/mlp/fc2/matmul",
        ),
    ]


def test_writing_a_graph_does_not_change_the_parameters() -> None:
    params: dict[str, Array] = random_params(SMALL)
    table = np.array(params["pos"])
    write_onnx(SMALL, params)
    np.testing.assert_array_equal(params["pos"], table)


def test_a_larger_head_than_the_stream_is_written_as_well() -> None:
    model = dataclasses.replace(SMALL, blocks=(Block(1, 20, 24, 4),))
    params, images = random_params(model), smooth_images(model, 3)
    found = open_runtime(write_onnx(model, params).SerializeToString(), "onnxruntime", 1).run(
        {INPUT: images}
    )[OUTPUT]
    np.testing.assert_allclose(found, logits(model, params, images), atol=5e-5)  # as above


def test_a_model_beyond_two_gib_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"632,045,800 parameters, one ONNX file holds at most"):
        write_onnx(named("H_14", (224, 224), 3, 1000), {})
