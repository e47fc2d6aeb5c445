"""The rotated stream: exact at full width for every family, and better than picking channels below it."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_families import CLS, DEIT, HYBRID, SINGLE
from tests.support.small_models import SMALL, UNEVEN, cut_evenly, logits, random_params, smooth_images
from trainer.compress import width
from trainer.compress.moments import Array
from trainer.compress.plan import Plan, from_json, identity
from trainer.compress.repair import Repair, Seen, cut
from trainer.compress.search import divergence
from trainer.description import ViT, macs, param_count
from trainer.models.build import Params, check_params, flatten

HOW = Repair(1e-2, 64)
FAMILIES = {
    "gap": SMALL,
    "cls": CLS,
    "uneven": UNEVEN,
    "deit": DEIT,
    "hybrid": HYBRID,
    "both": SINGLE["hybrid with a distillation token"],
    "large epsilon": dataclasses.replace(SMALL, norm_eps=0.1),
}
families = pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)


@functools.cache
def _setting(model: ViT) -> tuple[Params, Array]:
    return random_params(model), smooth_images(model, 96, 1)


def _narrow(model: ViT, params: Params, images: Array, kept: int) -> tuple[ViT, Params]:
    directions = Seen(model, params, images, 64, keep=True).directions
    return width.narrow(model, params, width.projection(directions, kept))


@families
def test_a_rotation_that_keeps_all_channels_says_what_the_teacher_says(model: ViT) -> None:
    params, images = _setting(model)
    shape, rotated = _narrow(model, params, images, model.width)
    assert shape == model
    wanted = logits(model, params, images[:16])
    tolerance = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(logits(shape, rotated, images[:16]), wanted, rtol=0, atol=tolerance)


@families
def test_a_narrow_model_has_the_arrays_its_description_asks_for_and_repair_brings_it_nearer(
    model: ViT,
) -> None:
    params, images = _setting(model)
    plan = dataclasses.replace(identity(model), width=12)
    shape = plan.shape_of(model)
    assert shape.width == 12
    assert shape.norm_eps == pytest.approx(model.norm_eps * model.width / 12)
    told, losses = logits(model, params, images), []
    for how in (HOW, dataclasses.replace(HOW, fit=False)):
        found, remarks = cut(model, params, plan, images, how)
        check_params(shape, found, "the narrow model")
        assert {np.asarray(leaf).dtype for leaf in flatten(found).values()} == {np.dtype(np.float32)}
        assert remarks == []
        losses.append(divergence(told, logits(shape, found, images)))
    assert losses[0] < losses[1]


def _of_low_rank(model: ViT, rank: int) -> Params:
    """Parameters whose writers all write into the same `rank` directions."""
    params = random_params(model)
    drawn = np.linalg.qr(np.random.default_rng(3).normal(size=(model.width, rank)))[0]
    into = (drawn @ drawn.T).astype(np.float32)
    writers = ("pos", "patch/kernel", "patch/bias", "out/kernel", "out/bias", "fc2/kernel", "fc2/bias")

    def project(tree: Params, path: str = "") -> Params:
        return {
            name: project(value, f"{path}/{name}")
            if isinstance(value, dict)
            else (value @ into if f"{path}/{name}".endswith(writers) else value)
            for name, value in tree.items()
        }

    return project(params)


def test_a_stream_of_low_rank_is_kept_by_rotation_and_lost_by_picking_channels() -> None:
    params, images = _of_low_rank(SMALL, 7), smooth_images(SMALL, 96, 1)
    directions = Seen(SMALL, params, images, 64, keep=True).directions
    picked = np.eye(16)[:, np.sort(np.argsort(-np.square(directions[:, :8]).sum(axis=1))[:8])]
    told = logits(SMALL, params, images)
    rotated, chosen = (
        divergence(told, logits(*width.narrow(SMALL, params, to_narrow), images))
        for to_narrow in (width.projection(directions, 8), picked)
    )
    assert rotated < 1e-6
    assert chosen > 1e-2


def test_width_and_inner_sizes_are_cut_in_one_plan_that_survives_json() -> None:
    params, images = _setting(SMALL)
    plan = dataclasses.replace(cut_evenly(SMALL, 1, 4, 16), width=8)
    assert from_json(json.loads(json.dumps(plan.to_json()))) == plan
    shape = plan.shape_of(SMALL)
    found, _ = cut(SMALL, params, plan, images, HOW)
    check_params(shape, found, "the cut model")
    assert np.isfinite(logits(shape, found, images)).all()


@families
def test_costs_fall_with_the_width(model: ViT) -> None:
    shapes = [dataclasses.replace(identity(model), width=kept).shape_of(model) for kept in (16, 12, 8, 2)]
    for cost in (param_count, macs):
        costs = [cost(shape) for shape in shapes]
        assert costs == sorted(set(costs), reverse=True)


def test_the_teachers_own_width_is_no_cut() -> None:
    params, images = _setting(SMALL)
    for kept in (0, 16):
        found, _ = cut(SMALL, params, Plan(identity(SMALL).layers, kept), images, HOW)
        assert all(a is b for a, b in zip(flatten(found).values(), flatten(params).values(), strict=True))


@pytest.mark.parametrize(
    ("model", "kept", "message"),
    [
        (SMALL, 17, r"width 17 is impossible; .* 2 to 16 channels"),
        (SMALL, 1, r"width 1 is impossible; .* 2 to 16 channels"),
        (dataclasses.replace(SMALL, num_classes=0), 8, "without a head gives out its stream"),
    ],
)
def test_an_impossible_width_is_refused_in_one_line(model: ViT, kept: int, message: str) -> None:
    params, images = _setting(model)
    with pytest.raises(UserError, match=message):
        cut(model, params, Plan(identity(model).layers, kept), images, HOW)
