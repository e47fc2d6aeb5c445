"""The schedule at its corners, and what weight decay reaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.small_models import UNEVEN
from trainer import config, optim
from trainer.config import Experiment
from trainer.description.variants import named
from trainer.models.build import flatten, param_shapes
from trainer.optim import _decayed


def experiment(**changes: object) -> Experiment:
    settings = {
        "base_lr": 0.5,
        "warmup_steps": 10,
        "total_steps": 110,
        "wd": 0.1,
        "grad_norm_clip": 1.0,
    } | changes
    teacher = config.experiment("configs/digits.py:teacher", [])
    return dataclasses.replace(teacher, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.25), (10, 0.5), (60, 0.25), (110, 0.0), (500, 0.0)]
)
def test_the_rate_rises_linearly_and_falls_as_a_cosine(step: int, rate: float) -> None:
    # The cosine of pi/2 is 0 to 4e-8 in float32; the rate itself has 24 bits.
    assert float(optim.schedule(experiment())(step)) == pytest.approx(rate, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.25), (10, 0.5), (60, 0.25), (85, 0.125), (110, 0.0)]
)
def test_the_rate_may_fall_linearly(step: int, rate: float) -> None:
    assert float(optim.schedule(experiment(decay_type="linear"))(step)) == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize(("step", "rate"), [(5, 0.25), (10, 0.5), (40, 0.25), (90, 0.5 / 3)])
def test_the_rate_may_fall_as_one_over_the_root_of_the_step(step: int, rate: float) -> None:
    assert float(optim.schedule(experiment(decay_type="rsqrt"))(step)) == pytest.approx(rate)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert float(optim.schedule(experiment(warmup_steps=0))(0)) == 0.5


def test_a_warm_up_of_all_steps_but_one_has_a_schedule() -> None:
    assert float(optim.schedule(experiment(warmup_steps=109))(109)) == 0.5


def test_decay_reaches_kernels_and_nothing_else() -> None:
    mask = flatten(_decayed(param_shapes(UNEVEN)))
    assert {name.rpartition("/")[2] for name, decayed in mask.items() if decayed} == {"kernel"}
    assert {name.rpartition("/")[2] for name, decayed in mask.items() if not decayed} == {
        "bias",
        "scale",
        "pos",
        "cls",
    }


def _first_updates(settings: Experiment, gradients: dict[str, jax.Array]) -> dict[str, jax.Array]:
    params = {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}
    tx = optim.optimiser(settings)
    updates, _ = tx.update(gradients, tx.init(params), params)
    return updates  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion"])
def test_without_gradients_a_step_takes_rate_times_decay_of_each_kernel(name: str) -> None:
    settings = experiment(warmup_steps=0, optim=name)
    updates = _first_updates(settings, {"kernel": jnp.zeros(3), "bias": jnp.zeros(3)})
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)  # two float32 products
    assert np.array_equal(updates["bias"], np.zeros(3))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("sgd", [0.3, -0.4], [0.57, -0.76]),  # 0.9 of the last direction is kept
        ("lion", [1.0, -1.0], [1.0, -1.0]),  # signs
        ("adamw", [1.0, -1.0], [1.0, -1.0]),  # a gradient over its own root mean square
        ("adafactor", [0.1, -0.1], [0.19, -0.19]),  # the same, and a tenth of it a step
    ],
)
def test_each_optimiser_takes_its_own_direction(name: str, first: list[float], second: list[float]) -> None:
    tx = optim.optimiser(experiment(warmup_steps=0, wd=0.0, base_lr=1.0, decay_type="rsqrt", optim=name))
    params, gradients = {"kernel": jnp.zeros(2)}, {"kernel": jnp.array([0.3, -0.4])}
    state, rates = tx.init(params), (1.0, 0.5**0.5)
    for rate, wanted in zip(rates, (first, second), strict=True):
        updates, state = tx.update(gradients, state, params)
        # Moments and their corrections are float32, and Adam adds 1e-8 to the root.
        np.testing.assert_allclose(updates["kernel"], -rate * np.array(wanted), rtol=1e-4)


def test_what_adamw_keeps_lies_where_stored_runs_have_it() -> None:
    params = {"kernel": jnp.zeros((2, 2))}
    held = flatten(optim.optimiser(experiment()).init(params))
    assert held.keys() == flatten((None, optax.adamw(lambda step: 0.1).init(params))).keys()


def test_adafactor_keeps_every_kernel_of_a_vit_in_factors() -> None:
    """Of 64 dims a head, too: nothing but first moments is as large as the parameters."""
    blocks = {"blocks": param_shapes(named("Ti_16", (224, 224), 3, 1000))["blocks"]}
    held = flatten(jax.eval_shape(optim.optimiser(experiment(optim="adafactor")).init, blocks))
    kernels = {name: leaf for name, leaf in held.items() if name.endswith("kernel") and leaf.ndim > 2}
    assert sum(leaf.size for leaf in kernels.values()) <= 1.05 * sum(
        leaf.size for name, leaf in flatten(blocks).items() if name.endswith("kernel")
    )


def test_adafactor_keeps_of_a_large_kernel_two_vectors() -> None:
    params = {"kernel": jnp.zeros((256, 128))}
    held = optim.optimiser(experiment(optim="adafactor")).init(params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(held))
    assert sizes[-3:] == [128, 256, 256 * 128]  # and the first moment, whole


def test_gradients_are_clipped_to_their_global_norm() -> None:
    """Adam hides the scale of a first gradient, so what reaches it is compared: two steps, the second much larger."""
    tx, params = optim.optimiser(experiment(warmup_steps=0, wd=0.0)), {"kernel": jnp.zeros(2)}
    unclipped = optax.adamw(optim.schedule(experiment(warmup_steps=0)), weight_decay=0.0)
    state, plain = tx.init(params), unclipped.init(params)
    for gradient in ([0.3, 0.4], [300.0, 400.0]):
        updates, state = tx.update({"kernel": jnp.array(gradient)}, state, params)
        clipped = np.array(gradient) * min(1.0, 1.0 / np.linalg.norm(gradient))
        expected, plain = unclipped.update({"kernel": jnp.asarray(clipped, jnp.float32)}, plain, params)
        np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-5)  # float32 moments


def test_muon_moves_the_kernels_of_blocks_along_orthogonal_directions() -> None:
    """Newton and Schulz's five steps bring singular values between 0.7 and 1.2 (the post's section on coefficients)."""
    settings = experiment(warmup_steps=0, wd=0.0, optim="muon", grad_norm_clip=1e9)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), param_shapes(UNEVEN))
    keys = iter(jax.random.split(jax.random.key(0), 999))
    gradients = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    tx = optim.optimiser(settings)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    for name in ("blocks/0/attention/query", "blocks/0/attention/out", "blocks/0/mlp/fc1"):
        update = np.asarray(flatten(updates)[f"{name}/kernel"])
        matrix = update.reshape((-1, UNEVEN.width) if name.endswith("out") else (UNEVEN.width, -1))
        values = np.linalg.svd(matrix / (0.5 * 0.2 * np.sqrt(max(matrix.shape))), compute_uv=False)
        assert np.all((values > 0.6) & (values < 1.3)), name


def test_muon_leaves_all_but_the_kernels_of_blocks_to_adam() -> None:
    settings = experiment(warmup_steps=0, optim="muon")
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), param_shapes(UNEVEN))
    tx, nothing = optim.optimiser(settings), jax.tree.map(jnp.zeros_like, ones)
    updates, _ = jax.jit(tx.update)(nothing, tx.init(ones), ones)
    decayed = {name for name, update in flatten(updates).items() if np.any(update)}
    assert decayed == {
        name for name in flatten(ones) if name.startswith("blocks/") and name.endswith("/kernel")
    }


def test_the_first_update_follows_the_warm_up_from_0() -> None:
    updates = _first_updates(experiment(), {"kernel": jnp.ones(3), "bias": jnp.ones(3)})
    assert all(np.array_equal(update, np.zeros(3)) for update in updates.values())
