"""Measured losses: the shortcut by zeros and moments says what cutting for real says."""

import dataclasses
import functools

import numpy as np
import pytest

from tests.support.small_families import CLS, DEIT, HYBRID
from tests.support.small_models import SMALL, UNEVEN, random_params, smooth_images
from trainer.compress import losses, scores, search, streams, width
from trainer.compress.losses import Curve, Losses
from trainer.compress.padding import padded_model
from trainer.compress.plan import Plan, identity
from trainer.compress.repair import Repair, cut
from trainer.compress.search import Judge, Teacher
from trainer.description import ViT
from trainer.models.build import Params


def test_a_curve_is_exact_where_it_was_measured_and_geometric_between() -> None:
    curve = Curve((0, 8, 16, 32), (1.0, 0.01, 0.0001, 0.0))
    assert [curve.at(size) for size in (0, 8, 16, 32)] == pytest.approx([1.0, 0.01, 0.0001, 0.0])
    assert curve.at(12) == pytest.approx(0.001)
    assert curve.at(24) == pytest.approx(0.00005)  # nothing is lost of the whole: linear


def test_below_the_least_measured_size_the_loss_goes_on_growing() -> None:
    curve = Curve((8, 16, 32), (0.01, 0.001, 0.0))
    assert curve.at(0) == pytest.approx(0.1)
    assert curve.at(4) > curve.at(8)


def test_a_loss_of_nothing_stays_comparable() -> None:
    assert 0 < Curve((8, 16, 32), (0.0, 0.0, 0.0)).at(8) < 1e-6


@functools.cache
def _setting(model: ViT) -> tuple[Teacher, Judge, Losses]:
    teacher = Teacher(model, random_params(model), smooth_images(model, 128), Repair(1e-2, 32))
    judge = Judge(teacher)
    found = scores.score(model, teacher.params, teacher.images, "fisher", 0, 32)
    return teacher, judge, search.measure_losses(teacher, found, judge)


@pytest.mark.parametrize(
    "model", [SMALL, UNEVEN, CLS, DEIT, HYBRID], ids=["gap", "uneven", "cls", "deit", "hybrid"]
)
def test_every_branch_has_curves_that_fall_to_nothing(model: ViT) -> None:
    _, _, table = _setting(model)
    units = model.stem.num_units if model.stem else 0
    behind = [list(curves) for curves in table[len(model.blocks) :]]
    assert behind == [["stem"]] * units + [["width"]]
    for block, curves in zip(model.blocks, table):
        kinds = {"heads", "query_key", "value"} if block.num_heads else set()
        kinds |= {"mlp"} if block.mlp_dim else set()
        assert curves.keys() == kinds | ({"block"} if block.num_heads and block.mlp_dim else set())
        for curve in curves.values():
            assert list(curve.losses) == sorted(curve.losses, reverse=True)
            assert curve.losses[-1] == 0


def test_the_loss_without_an_mlp_is_that_of_a_model_without_it() -> None:
    teacher, _, table = _setting(SMALL)
    block = {
        name: value for name, value in teacher.params["blocks"]["1"].items() if name not in ("norm2", "mlp")
    }
    params = {**teacher.params, "blocks": {**teacher.params["blocks"], "1": block}}
    first, second = SMALL.blocks
    shape = dataclasses.replace(SMALL, blocks=(first, dataclasses.replace(second, mlp_dim=0)))
    assert table[1]["mlp"].losses[0] == pytest.approx(_loss(shape, params), rel=1e-3)


def _loss(model: ViT, params: Params) -> float:
    teacher, judge, _ = _setting(SMALL)
    told = [
        streams.logits(SMALL, teacher.params, judge.held_out, 32),
        streams.logits(model, params, judge.held_out, 32),
    ]
    return losses.divergence(*told)


@pytest.mark.parametrize("dead", ["mlp/fc1", "attention/value"])
def test_a_branch_that_says_nothing_can_be_cut_at_no_loss(dead: str) -> None:
    """Covariances of nothing but zeros: least squares over them must still have a solution."""
    part, layer = dead.split("/")
    params = random_params(SMALL)
    block = params["blocks"]["1"]
    silent = {name: np.zeros_like(value) for name, value in block[part][layer].items()}
    block = {**block, part: {**block[part], layer: silent}}
    params = {**params, "blocks": {**params["blocks"], "1": block}}
    teacher = Teacher(SMALL, params, smooth_images(SMALL, 128), Repair(1e-2, 32))
    found = scores.score(SMALL, params, teacher.images, "act", 0, 32)
    table = search.measure_losses(teacher, found, Judge(teacher))
    kind = "mlp" if part == "mlp" else "value"
    curve = table[1][kind]  # without the branch its last bias is lost as well, so a size of 0 costs something
    assert max(curve.losses[1:]) < 1e-6  # float32 noise of logits near 1


def test_the_loss_without_a_block_is_that_of_a_model_without_it() -> None:
    teacher, _, table = _setting(SMALL)
    shape = dataclasses.replace(SMALL, blocks=SMALL.blocks[:1])
    params = {**teacher.params, "blocks": {"0": teacher.params["blocks"]["0"]}}
    assert table[1]["block"].losses[0] == pytest.approx(_loss(shape, params), rel=1e-3)


def test_the_loss_of_a_width_is_that_of_a_narrower_model() -> None:
    teacher, judge, table = _setting(SMALL)
    curve = table[-1]["width"]
    assert curve.sizes == (4, 8, 12, 16)
    narrower = width.narrow(SMALL, teacher.params, width.projection(judge.directions, 8))
    assert curve.losses[1] == pytest.approx(_loss(*narrower), rel=1e-3)


@pytest.mark.parametrize("model", [SMALL, UNEVEN, DEIT], ids=["gap", "uneven", "deit"])
def test_a_cut_model_padded_to_the_teachers_sizes_says_the_same(model: ViT) -> None:
    teacher, judge, _ = _setting(model)
    layers = tuple(
        dataclasses.replace(
            layer,
            heads=layer.heads[:1],
            qk_dim=max(layer.qk_dim // 2, 1),
            v_dim=max(layer.v_dim // 2, 1),
            neurons=layer.neurons[::2],
        )
        for layer in identity(model).layers
    )
    plan = Plan(layers, 12)
    params, _ = cut(model, teacher.params, plan, judge.fitted, teacher.how)
    wanted = streams.logits(plan.shape_of(model), params, judge.held_out, 32)
    found = streams.logits(*padded_model(model, plan, params), judge.held_out, 32)
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # float32 sums in another order, logits of about 10
