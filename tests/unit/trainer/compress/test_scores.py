import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_models import SMALL, UNEVEN, logits, random_params, smooth_images
from trainer.compress import calibration_pass, gradient_scores, scores
from trainer.compress.calibration_pass import Partial, Pass, Sums
from trainer.compress.moments import Array
from trainer.compress.scores import Scores
from trainer.description import ViT
from trainer.models.build import Params, bind, flatten

ONE = dataclasses.replace(SMALL, blocks=SMALL.blocks[:1])
THREE = dataclasses.replace(UNEVEN, blocks=UNEVEN.blocks[:3])
IMAGES = 80  # four patches each: more than four rows for each of 16 channels


@functools.cache
def _setting(model: ViT = ONE) -> tuple[Params, Array]:
    return random_params(model), smooth_images(model, IMAGES)


@functools.cache
def _score(kind: str = "fisher", batch: int = 40, model: ViT = ONE) -> Scores:
    return scores.score(model, *_setting(model), kind, 0, batch)


def _loss(
    model: ViT, params: Params, gates: Params | None, images: jax.Array, labels: jax.Array
) -> jax.Array:
    found = jax.nn.log_softmax(bind(model, params)(images, gates=gates))
    return -jnp.take_along_axis(found, labels[:, None], axis=1).mean()


def _equal_to_rounding(found: Array, wanted: Array) -> None:
    # Sums of some hundred float32 products of both signs; a wrong formula is off by as much as the score itself.
    np.testing.assert_allclose(found, wanted, atol=5e-4 * float(np.abs(wanted).max()))


def test_the_gradient_of_a_gate_is_the_sum_of_weight_times_gradient_over_its_units_weights() -> None:
    params, images = _setting(SMALL)
    labels = jnp.arange(IMAGES) % 10
    gates = gradient_scores.open_gates(SMALL)
    gradient = jax.jit(jax.grad(_loss, argnums=(1, 2)), static_argnums=0)
    of_weights, of_gates = gradient(SMALL, params, gates, jnp.asarray(images), labels)
    for index in "01":
        products = jax.tree.map(
            lambda w, g: np.asarray(w * g), params["blocks"][index], of_weights["blocks"][index]
        )
        attention, mlp, found = products["attention"], products["mlp"], of_gates[index]
        _equal_to_rounding(found["mlp"], mlp["fc2"]["kernel"].sum(1))
        _equal_to_rounding(found["heads"], attention["out"]["kernel"].sum((1, 2)))
        _equal_to_rounding(found["value"], attention["out"]["kernel"].sum(2))
        query = attention["query"]["kernel"].sum(0) + attention["query"]["bias"]
        _equal_to_rounding(found["query_key"], query)
        _equal_to_rounding(
            found["attention"], attention["out"]["kernel"].sum() + attention["out"]["bias"].sum()
        )
        _equal_to_rounding(found["mlp_branch"], mlp["fc2"]["kernel"].sum() + mlp["fc2"]["bias"].sum())


def test_the_gate_of_a_block_is_its_branches_together_and_that_of_a_channel_all_that_read_it() -> None:
    params, images = _setting(SMALL)
    labels = jnp.arange(IMAGES) % 10
    gates = gradient_scores.open_gates(SMALL)

    def loss(block: jax.Array, channel: jax.Array) -> jax.Array:
        closed = {**gates, "0": {**gates["0"], "attention": block, "mlp_branch": block}}
        one = jnp.ones(16).at[3].set(channel)
        read = {index: {**own, "norm1": one, "norm2": one} for index, own in closed.items()}
        return _loss(SMALL, params, read, jnp.asarray(images), labels)

    of_block, of_channel = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.ones(()), jnp.ones(()))
    gradients = jax.jit(jax.grad(_loss, argnums=2), static_argnums=0)
    found = gradient_scores.with_sums(gradients(SMALL, params, gates, jnp.asarray(images), labels))
    _equal_to_rounding(found["0"]["block"], of_block)
    _equal_to_rounding(found["stream"]["width"][3], of_channel)


def _single_gradients(drawn: bool) -> dict[str, Array]:
    """The gates' gradients of every image alone, stacked, with labels drawn as `score` draws them, or the first answer."""
    params, images = _setting()
    ordered = scores.order_dims(ONE, params, images, 40)
    gates = gradient_scores.open_gates(ONE)
    keys, found = jax.random.split(jax.random.key(0), IMAGES), logits(ONE, ordered, images)
    gradient = jax.jit(jax.grad(_loss, argnums=2), static_argnums=0)
    singles = []
    for index in range(IMAGES):
        answer = jnp.asarray(found[index])
        label = jax.random.categorical(keys[index], answer) if drawn else answer.argmax()
        own = gradient(ONE, ordered, gates, jnp.asarray(images[index : index + 1]), label[None])
        singles.append(flatten(gradient_scores.with_sums(own)))
    return {name: np.stack([np.asarray(one[name]) for one in singles]) for name in singles[0]}


def test_fisher_of_many_images_is_the_mean_of_half_the_square_over_single_images_and_taylor_that_of_the_mean() -> (
    None
):
    singles, of_first = _single_gradients(drawn=True), _single_gradients(drawn=False)
    fisher, taylor = flatten(_score("fisher")), flatten(_score("taylor"))
    assert singles.keys() == fisher.keys() == taylor.keys()
    for name, gradients in singles.items():
        _equal_to_rounding(fisher[name], (gradients**2).mean(0) / 2)
        _equal_to_rounding(taylor[name], np.abs(of_first[name].mean(0)))


def test_true_labels_take_the_place_of_those_that_the_model_says() -> None:
    params, images = _setting()
    ordered, labels = scores.order_dims(ONE, params, images, 40), np.arange(IMAGES) % 10
    gates, gradient = gradient_scores.open_gates(ONE), jax.jit(jax.grad(_loss, argnums=2), static_argnums=0)
    wanted = gradient(ONE, ordered, gates, jnp.asarray(images), jnp.asarray(labels))
    found = scores.score(ONE, params, images, "taylor", 0, 40, labels=labels)
    _equal_to_rounding(found["0"]["mlp"], np.abs(wanted["0"]["mlp"]))


def test_scores_do_not_depend_on_the_batch() -> None:
    for name, value in flatten(_score(batch=IMAGES)).items():
        _equal_to_rounding(value, flatten(_score())[name])


@pytest.mark.parametrize("model", [SMALL, THREE], ids=["even", "uneven"])
def test_ordering_dims_does_not_change_what_the_model_says(model: ViT) -> None:
    params, images = _setting(model)
    ordered = scores.order_dims(model, params, images, 40)
    assert any(not np.array_equal(a, b) for a, b in zip(flatten(ordered).values(), flatten(params).values()))
    # Logits of about 10 after some blocks of float32.
    np.testing.assert_allclose(logits(model, ordered, images), logits(model, params, images), atol=2e-4)


def test_ordering_leaves_the_callers_parameters_alone() -> None:
    params, images = _setting()
    before = {name: np.array(value) for name, value in flatten(params).items()}
    scores.order_dims(ONE, params, images, 40)
    for name, value in flatten(params).items():
        np.testing.assert_array_equal(value, before[name])


def test_every_unit_has_a_score_and_missing_branches_have_none() -> None:
    found = _score(model=THREE)
    shapes = {index: {name: np.shape(value) for name, value in own.items()} for index, own in found.items()}
    attention = {"heads": (2,), "query_key": (2, 4), "value": (2, 8), "attention": (), "norm1": (16,)}
    mlp = {"mlp": (24,), "mlp_branch": (), "norm2": (16,)}
    assert shapes["0"] == {**attention, **mlp, "block": ()}
    assert shapes["1"] == {**attention, "heads": (1,), "query_key": (1, 8), "value": (1, 3), "block": ()}
    assert shapes["2"] == {**mlp, "mlp": (40,), "block": ()}
    assert shapes["stream"] == {"width": (16,)}
    assert all((np.asarray(value) >= 0).all() and np.any(value) for value in flatten(found).values())


def test_early_dims_matter_more_than_late_ones_and_null_dims_not_at_all() -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, IMAGES)
    attention = params["blocks"]["0"]["attention"]
    for name in ("query", "value"):  # five of eight dims of the first block do nothing
        attention[name]["kernel"][..., 3:], attention[name]["bias"][..., 3:] = 0, 0
    found = scores.score(SMALL, params, images, "fisher", 0, 40)
    for name in ("query_key", "value"):
        null, whole = found["0"][name], found["1"][name]
        # Zero but for the square of float32 rounding, which the ordering leaves in the null directions.
        assert (null[:, 3:] < 1e-8 * null.max()).all()
        assert (null[:, :3] > 1e-4 * null.max()).all()
        assert whole[:, :4].sum() > 2 * whole[:, 4:].sum()


def test_scores_survive_being_written_as_arrays() -> None:
    found, again = _score(), scores.from_arrays(scores.to_arrays(_score()))
    assert flatten(found).keys() == flatten(again).keys()
    assert again["0"]["mlp"] is found["0"]["mlp"]


@pytest.mark.parametrize("kind", ["fisher", "obs"])
def test_an_interrupted_pass_goes_on_with_the_next_batch_and_ends_with_the_same_scores(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, images = _setting()
    wanted, kept = _score(kind, batch=16), Partial(tmp_path / "scores.partial.npz", "this pass")
    monkeypatch.setattr(calibration_pass, "_KEPT_EVERY_S", -1.0)  # after every batch
    summed, batches = calibration_pass.summed, list[int]()

    def counting(how: Pass, sums: Sums, *arguments: Any) -> Params:
        def counted(*given: Any) -> Params:
            if len(batches) == 3:
                raise KeyboardInterrupt
            batches.append(1)
            return sums(*given)

        return summed(how, counted, *arguments)

    monkeypatch.setattr(calibration_pass, "summed", counting)
    with pytest.raises(KeyboardInterrupt):
        scores.score(ONE, params, images, kind, 0, 16, partial=kept)
    assert len(batches) == 3  # of five
    batches.clear()
    found = scores.score(ONE, params, images, kind, 0, 16, partial=kept)
    assert len(batches) == 2
    for name, values in flatten(wanted).items():
        np.testing.assert_array_equal(flatten(found)[name], values, err_msg=name)


def test_sums_that_another_pass_kept_are_not_taken(tmp_path: Path) -> None:
    sums = {"first": {"0": {"mlp": np.ones(3)}}}
    Partial(tmp_path / "kept.npz", "one").save(16, sums)
    assert Partial(tmp_path / "kept.npz", "other").load() is None
    loaded = Partial(tmp_path / "kept.npz", "one").load()
    assert loaded is not None
    assert loaded[0] == 16
    np.testing.assert_array_equal(loaded[1]["first"]["0"]["mlp"], np.ones(3))
