"""Channels inside the units of a hybrid's stem: scored, cut, repaired, searched for, and served by the same description."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from serving.command import UserError
from serving.timing.turns import Timing
from tests.support.small_families import HYBRID
from tests.support.small_models import logits, random_params, smooth_images
from trainer import description
from trainer.compress import cells, scores, search, stem, stem_losses, streams
from trainer.compress.allocate import Rounding, units_of
from trainer.compress.latency_table import CostTable, grid
from trainer.compress.padding import padded_model
from trainer.compress.plan import Plan, Unit, from_json, identity
from trainer.compress.repair import Repair, cut
from trainer.compress.scores import Scores
from trainer.compress.search import Judge, Teacher, divergence
from trainer.description import GROUPS, Stem, ViT, macs, named, param_count
from trainer.models.build import Params, bind, param_shapes
from trainer.models.stem import gates_name

Array = np.ndarray[Any, np.dtype[Any]]

MODEL = dataclasses.replace(HYBRID, stem=Stem(32, (1, 1)), image_size=(40, 40), patch_size=1)
ALL = tuple(range(GROUPS))
ROUNDING = Rounding(mlp=8, head_dim=4, width=8)
HOW = Repair(ridge=1e-2, batch=25)


@functools.cache
def _setting(count: int = 100) -> tuple[Params, Array]:
    return random_params(MODEL), smooth_images(MODEL, count)


@functools.cache
def _scores(kind: str = "fisher") -> Scores:
    params, images = _setting()
    return scores.score(MODEL, params, images[:24], kind, 0, 24)


def _plan(*left: int) -> Plan:
    return dataclasses.replace(identity(MODEL), stem=units_of(MODEL, _scores(), left))


def _cut(plan: Plan, fit: bool = True) -> tuple[ViT, Params]:
    how = dataclasses.replace(HOW, fit=fit)
    return plan.shape_of(MODEL), cut(MODEL, *_given(plan), how)[0]


def _given(plan: Plan) -> tuple[Params, Plan, Array]:
    params, images = _setting()
    return params, plan, images


def test_keeping_every_channel_computes_the_same_with_kernels_that_are_used_as_they_are() -> None:
    params, images = _setting()
    model, found = _cut(dataclasses.replace(identity(MODEL), stem=(Unit(ALL, ALL),) * 2))
    assert model.stem is not None
    assert not model.stem.standardised
    # Logits of about 10 after a stem whose kernels were standardised elsewhere, and in another order.
    np.testing.assert_allclose(logits(model, found, images), logits(MODEL, params, images), atol=1e-4)


def test_what_is_sliced_away_without_repair_is_what_gates_at_zero_close() -> None:
    params, images = _setting()
    plain, folded = stem.folded(MODEL, params)
    whole = dataclasses.replace(MODEL, stem=plain)
    kept = Unit(tuple(range(0, GROUPS, 2)), tuple(range(16)))
    gates = {str(index): dict[str, Array]() for index in range(len(MODEL.blocks))}
    gates[gates_name(0)] = {"conv1": np.ones(GROUPS), "conv2": np.ones(GROUPS)}
    gates[gates_name(1)] = {
        name: np.isin(np.arange(GROUPS), getattr(kept, name)).astype(np.float32)
        for name in ("conv1", "conv2")
    }
    closed = np.asarray(bind(whole, folded)(images[:48], gates=gates))
    model, found = _cut(dataclasses.replace(identity(MODEL), stem=(Unit(ALL, ALL), kept)), fit=False)
    np.testing.assert_allclose(logits(model, found, images[:48]), closed, atol=1e-4)


@pytest.mark.parametrize("left", [(32, 16), (8, 8)])
def test_repair_brings_a_cut_stem_nearer_to_the_teacher(left: tuple[int, int]) -> None:
    params, images = _setting()
    wanted = logits(MODEL, params, images)
    losses = [divergence(wanted, logits(*_cut(_plan(*left), fit), images)) for fit in (True, False)]
    assert losses[0] < losses[1] / 1.5, losses


def test_a_padded_model_says_what_the_cut_one_says_and_costs_what_its_arrays_hold() -> None:
    _, images = _setting()
    model, found = _cut(_plan(12, 20))
    padded = streams.logits(*padded_model(MODEL, _plan(12, 20), found), images[:48], 48)
    np.testing.assert_allclose(logits(model, found, images[:48]), padded, atol=1e-4)
    assert param_count(model) == sum(np.size(leaf) for leaf in _leaves(found))
    assert _shapes(found) == _shapes(param_shapes(model))


def _leaves(params: Params) -> list[Array]:
    return [
        leaf for value in params.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])
    ]


def _shapes(params: Params) -> Any:
    return {
        name: _shapes(value) if isinstance(value, dict) else tuple(value.shape)
        for name, value in params.items()
    }


@pytest.mark.parametrize("kind", ["fisher", "taylor", "act", "variance", "obs"])
def test_every_group_of_a_unit_has_a_score_and_one_that_says_nothing_has_the_least(kind: str) -> None:
    params, images = random_params(MODEL), smooth_images(MODEL, 24)
    second = params["stem"]["stages"]["1"]["0"]
    second["conv2_norm"]["scale"][10:12], second["conv2_norm"]["bias"][10:12] = 0, 0  # group 5 says nothing
    found = scores.score(MODEL, params, images, kind, 0, 24)
    for unit in range(2):
        assert {name: np.shape(value) for name, value in found[gates_name(unit)].items()} == {
            "conv1": (GROUPS,),
            "conv2": (GROUPS,),
        }
    score = found[gates_name(1)]["conv2"]
    assert np.argmin(score) == 5
    # OBS inverts a covariance that was damped by a hundredth of the mean variance.
    assert score[5] < (0.05 if kind == "obs" else 1e-6) * score.max()


def test_the_search_cuts_the_unit_that_matters_least() -> None:
    params, images = random_params(MODEL), _setting()[1]
    norm = params["stem"]["stages"]["0"]["0"]["conv3_norm"]
    norm["scale"] *= 0.01  # next to nothing reaches the shortcut's sum
    teacher = Teacher(MODEL, params, images, HOW)
    judge, found = Judge(teacher), scores.score(MODEL, params, images[:24], "act", 0, 24)
    table = search.measure_losses(teacher, found, judge)
    assert [list(curves) for curves in table[len(MODEL.blocks) :]] == [["stem"], ["stem"], ["width"]]
    budget = int(0.7 * macs(MODEL))
    best = search.to_budget(teacher, found, table, macs, budget, ROUNDING, judge)[0]
    left = cells.groups(best.plan.shape_of(MODEL).stem)
    assert macs(best.plan.shape_of(MODEL)) <= budget
    assert left[0] == 4
    assert left[1] > 16
    uniform = search.uniform(teacher, found, macs, budget, ROUNDING, judge)[0]
    assert len(set(cells.groups(uniform.plan.shape_of(MODEL).stem))) == 1
    assert best.divergence < uniform.divergence / 2


def test_a_curve_of_a_unit_is_the_loss_of_the_whole_cut_model() -> None:
    params, images = _setting()
    judge = Judge(Teacher(MODEL, params, images, HOW))
    table = stem_losses.measure(MODEL, params, _scores(), judge.fitted, judge.held_out, HOW)
    plan = _plan(GROUPS, 8)
    stem_alone = stem.cut(MODEL, params, plan.stem, judge.fitted, HOW.batch, HOW.ridge)
    assert stem_alone is not None
    whole = {**params, "stem": stem_alone.params}
    told = (logits(MODEL, params, judge.held_out), logits(plan.shape_of(MODEL), whole, judge.held_out))
    assert table[1]["stem"].losses[0] == pytest.approx(divergence(*told), rel=1e-3)


def test_a_stem_and_the_stream_are_cut_together() -> None:
    params, images = _setting()
    wanted = logits(MODEL, params, images)
    narrow = dataclasses.replace(_plan(16, 16), width=12)
    model, found = _cut(narrow)
    assert _shapes(found) == _shapes(param_shapes(model))
    padded = streams.logits(*padded_model(MODEL, narrow, found), images[:50], 25)
    np.testing.assert_allclose(logits(model, found, images[:50]), padded, atol=1e-4)
    losses = [divergence(wanted, logits(*_cut(narrow, fit), images)) for fit in (True, False)]
    assert losses[0] < losses[1] / 1.5, losses


def test_a_unit_of_few_groups_still_has_a_curve() -> None:
    _, images = _setting()
    tiny = dataclasses.replace(MODEL, stem=dataclasses.replace(MODEL.stem, groups=(2, 1)))  # type: ignore[type-var]
    own, few = random_params(tiny), {"conv1": np.ones(2), "conv2": np.ones(2)}
    score = {gates_name(0): few, gates_name(1): {name: np.ones(1) for name in few}}
    curves = stem_losses.measure(tiny, own, score, images[:75], images[75:], HOW)
    assert [one["stem"].sizes for one in curves] == [(1, 2), (1,)]
    assert curves[1]["stem"].at(1) == 0


def test_a_plan_with_units_survives_being_written() -> None:
    plan = _plan(12, 20)
    assert from_json(plan.to_json()) == plan
    assert description.from_json(description.to_json(plan.shape_of(MODEL))) == plan.shape_of(MODEL)
    assert "groups" not in description.to_json(MODEL)["stem"]  # older versions read it


def test_the_stem_of_a_latency_table_is_read_between_measured_sizes() -> None:
    def timer(models: Any) -> list[Timing]:
        return [Timing(macs(model) / 1e6, macs(model) / 1e6, 0.0, 0.0) for model in models]

    table = CostTable(grid(MODEL, ROUNDING), timer)
    for left in ((32, 32), (16, 32), (8, 12)):
        shape = _plan(*left).shape_of(MODEL)
        assert table(shape) == pytest.approx(macs(shape) / 1e6, rel=0.02)


def test_too_few_images_for_a_convolution_are_refused_by_its_name() -> None:
    params, _ = _setting()
    with pytest.raises(UserError, match=r"conv2 of unit 0 in stage 1 of the stem has \d+ dimensions"):
        cut(MODEL, params, _plan(32, 28), smooth_images(MODEL, 8), HOW)


@pytest.mark.parametrize("groups", [(1,), (0, 32), (33, 32)])
def test_impossible_groups_are_refused(groups: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="each unit keeps 1 to 32"):
        Stem(64, (1, 1), groups=groups)


def test_a_published_hybrid_has_units_to_cut() -> None:
    model = named("R26_S_32", (224, 224), 3, 1000)
    assert isinstance(model, ViT)
    assert model.stem is not None
    half = dataclasses.replace(model, stem=dataclasses.replace(model.stem, groups=(16,) * 8))
    whole, cut_macs = macs(model), macs(half)
    assert cut_macs < 0.8 * whole
