import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serving.command import UserError
from serving.runtime.base import Runtime
from serving.runtime.select import open_runtime
from tests.support.small_families import PAIR, SINGLE, inputs_for
from tests.support.small_models import SMALL, logits, random_params, smooth_images
from trainer.export import parity
from trainer.export.gate import Gate
from trainer.export.graph import Array
from trainer.export.onnx_writer import INPUT, OUTPUT, towers, write_onnx
from trainer.export.parity import Parity

PARAMS, IMAGES = random_params(SMALL), smooth_images(SMALL, 30)


def _graph() -> onnx.ModelProto:
    return write_onnx(SMALL, PARAMS)


def _compare(graph: onnx.ModelProto) -> Parity:
    return parity.reference(SMALL, PARAMS, IMAGES).compare(_open(graph))


def _open(graph: onnx.ModelProto) -> Runtime:
    return open_runtime(graph.SerializeToString(), "onnxruntime", 1)


def _change(graph: onnx.ModelProto, name: str, value: Array) -> None:
    weight = next(weight for weight in graph.graph.initializer if weight.name == name)
    weight.CopyFrom(numpy_helper.from_array(value, name))


def _weight(graph: onnx.ModelProto, name: str) -> Array:
    return np.array(
        numpy_helper.to_array(next(weight for weight in graph.graph.initializer if weight.name == name))
    )


def test_a_faithful_graph_passes_with_room_to_spare() -> None:
    found = _compare(_graph())
    parity.require_equal(found)
    assert found.images == 30
    assert found.top1_agreement == 1
    assert found.largest_logit == pytest.approx(np.abs(logits(SMALL, PARAMS, IMAGES)).max(), rel=1e-5)
    assert found.max_abs_difference < found.tolerance / 5


@pytest.mark.parametrize(
    "name", ["DeiT", "ViT without a head", "hybrid", "Mixer", "text transformer", "BERT"]
)
def test_a_faithful_graph_of_any_family_passes_with_room_to_spare(name: str) -> None:
    model, params = SINGLE[name], random_params(SINGLE[name])
    found = parity.reference(model, params, inputs_for(model, 13)).compare(_open(write_onnx(model, params)))
    assert (found.images, found.top1_agreement) == (13, 1)
    assert found.max_abs_difference < found.tolerance / 5


@pytest.mark.parametrize("tower", ["image", "text"])
def test_each_tower_is_held_against_its_half_of_the_live_pair(tower: str) -> None:
    params = random_params(PAIR)
    inputs = inputs_for(getattr(PAIR, tower), 13)
    runtime = _open(towers(PAIR, params)[tower])
    found = parity.tower_reference(PAIR, params, tower, inputs).compare(runtime)
    assert found.max_abs_difference < found.tolerance / 5
    params[tower]["norm" if tower == "image" else "embed_norm"]["bias"][0] += 0.1
    changed = parity.tower_reference(PAIR, params, tower, inputs).compare(runtime)
    with pytest.raises(UserError, match="differs from the live one"):
        parity.require_equal(changed)


def test_one_changed_weight_is_refused_with_both_numbers() -> None:
    graph = _graph()
    kernel = _weight(graph, "blocks/1/mlp/fc1/kernel")
    kernel[3, 5] += 0.1  # a tenth of what a kernel's column amounts to, in one of 512 weights
    _change(graph, "blocks/1/mlp/fc1/kernel", kernel)
    found = _compare(graph)
    with pytest.raises(UserError) as refusal:
        parity.require_equal(found)
    for number in (found.max_abs_difference, found.tolerance):
        assert f"{number:.3g}" in str(refusal.value)
    assert "nothing was written" in str(refusal.value)


def test_another_epsilon_or_gelu_is_noticed() -> None:
    for change in ({"norm_eps": 1e-3}, {"gelu": "tanh"}):
        graph = write_onnx(dataclasses.replace(SMALL, **change), PARAMS)
        with pytest.raises(UserError, match="differs from the live one"):
            parity.require_equal(_compare(graph))


def test_answers_that_are_no_numbers_are_refused() -> None:
    graph = _graph()
    _change(graph, "head/bias", np.full(10, np.nan, np.float32))
    with pytest.raises(UserError, match="differs from the live one by nan"):
        parity.require_equal(_compare(graph))


@pytest.mark.parametrize("batch", [1, 8])
def test_a_graph_with_a_baked_in_batch_is_refused(batch: int) -> None:
    graph = _graph()
    grid = _weight(graph, "patch/grid/shape")
    grid[0] = batch
    _change(graph, "patch/grid/shape", grid)
    del graph.graph.value_info[:]
    with pytest.raises(
        UserError, match=f"cannot take a batch of {3 if batch == 1 else 1}: .*nothing was written"
    ):
        _compare(graph)


class _Spy:
    """A runtime that notes the batches it is asked for."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.batches = runtime, list[int]()

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.batches.append(len(inputs[INPUT]))
        return self._runtime.run(inputs)

    def close(self) -> None:
        self._runtime.close()


@pytest.mark.parametrize(
    ("images", "batches"),
    [(30, [1, 3, 8, 8, 8, 2]), (12, [1, 3, 8]), (13, [1, 3, 8, 1]), (5, [1, 3, 1]), (1, [1])],
)
def test_every_image_is_asked_once_at_several_batches(images: int, batches: list[int]) -> None:
    spy = _Spy(_open(_graph()))
    found = parity.reference(SMALL, PARAMS, IMAGES[:images]).compare(spy)
    assert spy.batches == batches
    assert found.images == images


class _Shuffling:
    """A runtime that answers one image in ten with another label."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._asked = runtime, 0

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        answers = np.array(self._runtime.run(inputs)[OUTPUT])
        for row in range(len(answers)):
            self._asked += 1
            if self._asked % 10 == 0:
                answers[row] = np.roll(answers[row], 1)
        return {OUTPUT: answers}

    def close(self) -> None:
        self._runtime.close()


def test_too_few_equal_labels_are_refused_with_both_shares() -> None:
    found = parity.reference(SMALL, PARAMS, IMAGES).compare(_Shuffling(_open(_graph())))
    assert found.top1_agreement == pytest.approx(0.9)
    assert not Gate(0.9).why_refused("int8", found, _open(_graph()))
    why = Gate(0.95).why_refused("int8", found, _open(_graph()))
    assert "90.0% of 30 images, asked is 95.0%" in why
