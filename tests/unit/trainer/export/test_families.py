import dataclasses
import functools
from collections import Counter

import jax
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from serving.command import UserError
from serving.runtime.select import open_runtime
from tests.support.small_families import (
    BERT,
    DEIT,
    HYBRID,
    MIXER,
    PAIR,
    PAIRS,
    SINGLE,
    TRANSFORMER,
    inputs_for,
)
from tests.support.small_models import SMALL, random_params
from trainer.description import Stem, TextTower, TwoTowers, named, unit_convolutions
from trainer.export.graph import Array
from trainer.export.live import live_model, live_tower
from trainer.export.onnx_writer import graphs, multiplier, towers, weight_products, write_onnx
from trainer.export.signature import Single, signature, signatures
from trainer.models.build import bind

# float32 sums in another order, some layers deep, of answers of about 3; measured: 4e-6 at most.
NEAR = {"rtol": 0, "atol": 2e-5}


def _run(graph: onnx.ModelProto, inputs: Array) -> Array:
    """The graph's only output."""
    (answer,) = (
        open_runtime(graph.SerializeToString(), "onnxruntime", 1)
        .run({graph.graph.input[0].name: inputs})
        .values()
    )
    return answer


@functools.cache
def _single(name: str) -> tuple[onnx.ModelProto, Array, Array]:
    """The graph, eight inputs, and what the live model says to them."""
    model, params = SINGLE[name], random_params(SINGLE[name])
    inputs = inputs_for(model, 8)
    return write_onnx(model, params), inputs, live_model(model, params)(inputs)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("name", SINGLE)
def test_every_family_says_what_the_live_model_says_at_any_batch(name: str, batch: int) -> None:
    graph, inputs, wanted = _single(name)
    found = _run(graph, inputs[-batch:])
    assert found.shape == (batch, SINGLE[name].num_outputs)
    np.testing.assert_allclose(found, wanted[-batch:], **NEAR)


@pytest.mark.parametrize("name", SINGLE)
def test_answers_differ_between_inputs_by_far_more_than_from_the_live_model(name: str) -> None:
    wanted = _single(name)[2]
    assert np.ptp(wanted, axis=0).min() > 1e3 * NEAR["atol"]


@functools.cache
def _tower(name: str, tower: str) -> tuple[onnx.ModelProto, Array, Array]:
    """The tower's graph, eight inputs, and what the live pair says to them."""
    model, params = PAIRS[name], random_params(PAIRS[name])
    inputs = inputs_for(model.image if tower == "image" else model.text, 8)
    return towers(model, params)[tower], inputs, live_tower(model, params, tower)(inputs)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", PAIRS)
def test_each_tower_gives_the_live_pairs_normalised_embeddings(name: str, tower: str, batch: int) -> None:
    graph, inputs, wanted = _tower(name, tower)
    found = _run(graph, inputs[-batch:])
    np.testing.assert_allclose(found, wanted[-batch:], **NEAR)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


def test_an_embedding_of_zeros_stays_one() -> None:
    params = random_params(PAIR)
    params["text"]["head"] = jax.tree.map(np.zeros_like, params["text"]["head"])
    assert not _run(towers(PAIR, params)["text"], inputs_for(PAIR.text, 3)).any()


def test_the_multiplier_is_the_live_pairs() -> None:
    params = random_params(PAIR)
    assert multiplier(params) == pytest.approx(float(bind(PAIR, params).multiplier()[0]))


@pytest.mark.parametrize("name", [*SINGLE, *PAIRS])
def test_names_datatypes_and_shapes_of_a_graph_are_those_of_its_signature(name: str) -> None:
    model = {**SINGLE, **PAIRS}[name]
    written, promised = graphs(model, random_params(model)), signatures(model)
    assert written.keys() == promised.keys()
    for key, graph in written.items():
        for values, tensor in (
            (graph.graph.input, promised[key].input),
            (graph.graph.output, promised[key].output),
        ):
            (value,) = values
            batch, *others = value.type.tensor_type.shape.dim
            assert (value.name, -1, *(dim.dim_value for dim in others)) == (tensor.name, *tensor.shape)
            assert batch.dim_param == "batch"
            kinds = {"FP32": onnx.TensorProto.FLOAT, "INT32": onnx.TensorProto.INT32}
            assert value.type.tensor_type.elem_type == kinds[tensor.datatype]


@pytest.mark.parametrize("name", SINGLE)
def test_the_finished_file_passes_the_full_check_and_knows_every_shape(name: str) -> None:
    graph = _single(name)[0]
    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in graph.graph.input] == [signature(SINGLE[name]).input.name]
    described = {value.name for value in (*graph.graph.value_info, *graph.graph.output)}
    assert described == {output for node in graph.graph.node for output in node.output}


def test_what_is_read_names_the_input_and_only_a_classifier_gives_logits() -> None:
    def names(model: Single) -> tuple[str, str]:
        return signature(model).input.name, signature(model).output.name

    assert {names(model) for model in (SMALL, DEIT, HYBRID, MIXER)} == {("images", "logits")}
    assert names(dataclasses.replace(MIXER, num_classes=0)) == ("images", "embeddings")
    assert names(BERT) == names(TRANSFORMER) == ("tokens", "embeddings")
    classes = TwoTowers(dataclasses.replace(SMALL, num_classes=12), BERT)
    assert {given.output.name for given in signatures(classes).values()} == {"embeddings"}


def _operators(model: Single) -> Counter[str]:
    return Counter(node.op_type for node in write_onnx(model, random_params(model)).graph.node)


# Two blocks of attention and MLP.
_BLOCKS = Counter(LayerNormalization=4, Gelu=2, Softmax=2, MatMul=12, Add=12, Split=2, Reshape=8, Transpose=8)


def test_a_hybrid_is_one_transpose_convolutions_and_five_nodes_for_each_group_norm() -> None:
    convolutions = (
        1 + 4 + 3 + 4
    )  # root, and three units of which the first of each stage projects its shortcut
    assert sum(len(unit_convolutions(Stem(32, (2, 1)), *at)) for at in ((0, 0), (0, 1), (1, 0))) == 11
    norms = dict.fromkeys(("InstanceNormalization", "Mul", "Add"), convolutions)
    stem = Counter(norms, Conv=convolutions, Reshape=2 * convolutions, Relu=1 + 9, MaxPool=1, Transpose=1)
    stem["Add"] += 3  # shortcuts
    patches = Counter(Slice=1, Reshape=2, Transpose=1, MatMul=1, Pad=1, Add=1)
    head = Counter(Gather=1, LayerNormalization=1, MatMul=1, Add=1)
    assert _operators(HYBRID) == _BLOCKS + stem + patches + head


def test_two_heads_are_one_product() -> None:
    patches = Counter(Reshape=2, Transpose=1, MatMul=1, Pad=1, Add=1)
    assert _operators(DEIT) == _BLOCKS + patches + Counter(
        Slice=1, LayerNormalization=1, Reshape=1, MatMul=1, Add=1
    )


def test_a_mixer_is_products_norms_and_two_transposes_a_block() -> None:
    patches = Counter(Slice=1, Reshape=2, Transpose=1, MatMul=1, Add=1)
    block = Counter(LayerNormalization=2, Gelu=2, MatMul=4, Add=6, Transpose=2)
    head = Counter(LayerNormalization=1, ReduceMean=1, MatMul=1, Add=1)
    assert _operators(MIXER) == patches + block + block + head


def test_texts_are_rows_of_a_table_and_one_mask_for_all_blocks() -> None:
    common = _BLOCKS + Counter(Gather=2, Add=2, LayerNormalization=1, MatMul=1)  # embeddings, read-out, head
    assert _operators(TRANSFORMER) == common
    mask = Counter(Equal=1, Reshape=2, Or=1, Where=1)
    assert _operators(BERT) == common + mask + Counter(Add=2)


def test_a_bert_without_attention_has_no_mask() -> None:
    found = _operators(
        dataclasses.replace(
            BERT, blocks=(dataclasses.replace(BERT.blocks[0], num_heads=0, qk_dim=0, v_dim=0),)
        )
    )
    assert not found["Where"] + found["Softmax"]


def _weights(graph: onnx.ModelProto) -> dict[str, Array]:
    return {weight.name: numpy_helper.to_array(weight) for weight in graph.graph.initializer}


def _double(kernel: Array) -> Array:
    """The kernel standardised in double precision, its axes as ONNX has them."""
    wide = kernel.astype(np.float64)
    wide = (wide - wide.mean((0, 1, 2))) / (wide.std((0, 1, 2)) + 1e-5)
    return wide.transpose(3, 2, 0, 1)


def test_the_kernels_in_the_file_are_standardised_in_double_precision() -> None:
    params = random_params(HYBRID)
    # Far from 0: float32 would lose three of seven digits of the differences that matter.
    params["stem"]["root"]["kernel"] += 100
    weights = _weights(write_onnx(HYBRID, params))
    for name in ("root", "stages/0/0/proj", "stages/1/0/conv2"):
        kernel = functools.reduce(lambda node, key: node[key], name.split("/"), params["stem"])["kernel"]
        np.testing.assert_allclose(weights[f"stem/{name}/kernel"], _double(kernel), rtol=2e-7)


@pytest.mark.parametrize(
    ("size", "root", "pool"),
    [(32, (2, 3), (0, 1)), (33, (3, 3), (1, 1)), (34, (2, 3), (1, 1)), (35, (3, 3), (0, 1))],
)
def test_what_is_odd_of_the_padding_is_at_the_end(
    size: int, root: tuple[int, int], pool: tuple[int, int]
) -> None:
    model = dataclasses.replace(HYBRID, image_size=(size, 40), stem=Stem(32, (1, 1)), blocks=())
    params = random_params(model)
    graph = write_onnx(model, params)
    pads = {
        node.name: helper.get_node_attr_value(node, "pads")
        for node in graph.graph.node
        if node.op_type in ("Conv", "MaxPool")
    }
    assert (pads["stem/root"][0], pads["stem/root"][2]) == root
    assert (pads["stem/pool"][0], pads["stem/pool"][2]) == pool
    images = inputs_for(model, 2)
    np.testing.assert_allclose(_run(graph, images), live_model(model, params)(images), **NEAR)


def test_weight_products_of_a_hybrid_and_a_mixer_are_their_dense_layers_but_not_convolutions_or_classifier() -> (
    None
):
    dense = ["attention/qkv", "attention/out", "mlp/fc1", "mlp/fc2"]
    blocks = [f"blocks/{index}/{name}/matmul" for index in range(2) for name in dense]
    assert weight_products(write_onnx(HYBRID, random_params(HYBRID))) == ["patch/matmul", *blocks]
    mlps = ["tokens/fc1", "tokens/fc2", "channels/fc1", "channels/fc2"]
    blocks = [f"blocks/{index}/{name}/matmul" for index in range(2) for name in mlps]
    assert weight_products(write_onnx(MIXER, random_params(MIXER))) == ["patch/matmul", *blocks]


@pytest.mark.parametrize("name", ["DeiT", "hybrid", "Mixer", "BERT"])
def test_writing_any_family_does_not_change_its_parameters(name: str) -> None:
    params = random_params(SINGLE[name])
    write_onnx(SINGLE[name], params)
    jax.tree.map(np.testing.assert_array_equal, params, random_params(SINGLE[name]))


def test_a_pair_is_no_single_graph() -> None:
    with pytest.raises(UserError, match="kind 'two_towers' is no single graph"):
        write_onnx(PAIR, random_params(PAIR))  # type: ignore[arg-type]


def test_a_tower_beyond_two_gib_is_refused_before_any_work() -> None:
    many = dataclasses.replace(BERT, vocab_size=40_000_000, embed_dim=16)
    with pytest.raises(UserError, match="one ONNX file holds at most"):
        towers(TwoTowers(PAIR.image, many), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["R+ViT-Ti_16", "R26+ViT-S_32", "DeiT-Ti_16-distilled", "Mixer-B_16"])
def test_a_published_size_says_what_the_live_model_says(name: str) -> None:
    model = named(name, (224, 224), 3, 1000)
    assert not isinstance(model, TwoTowers | TextTower)
    params, images = random_params(model), inputs_for(model, 3)
    wanted = live_model(model, params)(images)
    found = _run(write_onnx(model, params), images)
    # float32 sums through dozens of layers; measured: at most 2e-6 of the largest logit.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
