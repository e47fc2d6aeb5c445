"""Quantization-aware training rounds what the exporter rounds, and learns through it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_families import DEIT, HYBRID, MIXER
from tests.support.small_models import SMALL, random_params, smooth_images
from tests.support.small_steps import Steps, batch
from trainer.description import Classifier
from trainer.export.int8 import rounding
from trainer.models.build import bind, flatten
from trainer.models.eight_bits import in_eight_bits, rounded_activations, rounded_kernel


def test_activations_and_kernels_are_rounded_as_the_exporter_rounds_them() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 5, 16)).astype(np.float32) + 0.7
    kernel = rng.standard_normal((16, 4, 6)).astype(np.float32)
    wanted = rounding.rounded_activations(values, float(values.min()), float(values.max()))
    np.testing.assert_allclose(rounded_activations(jnp.asarray(values)), wanted, atol=1e-6)
    wanted = rounding.rounded_kernel(kernel.reshape(16, 24)).reshape(kernel.shape)
    np.testing.assert_allclose(rounded_kernel(jnp.asarray(kernel), (0,)), wanted, atol=1e-6)
    assert np.abs(wanted - kernel).max() > 1e-3


def test_nothing_but_zeros_stays_zeros() -> None:
    zeros = jnp.zeros((2, 3))
    assert not rounded_activations(zeros).any()
    assert not rounded_kernel(zeros, (0,)).any()


@pytest.mark.parametrize("model", [SMALL, DEIT, HYBRID, MIXER], ids=["ViT", "DeiT", "hybrid", "Mixer"])
def test_every_product_but_the_classifiers_is_rounded_and_learns_as_if_it_were_not(model: Classifier) -> None:
    params, images = random_params(model), jnp.asarray(smooth_images(model, 4))

    @partial(jax.jit, static_argnames="rounds")
    def said(params: object, rounds: bool) -> jax.Array:
        module = bind(model, params)
        return (in_eight_bits(module) if rounds else module)(images)

    plain, rounded = said(params, False), said(params, True)
    assert np.abs(plain - rounded).max() > 1e-4
    assert np.sqrt(np.mean((plain - rounded) ** 2)) < 0.2 * np.std(plain)
    float_grads, rounded_grads = (
        flatten(jax.jit(jax.grad(lambda params, on=on: jnp.square(said(params, on)).sum()))(params))
        for on in (False, True)
    )
    for name, wanted in float_grads.items():
        found = rounded_grads[name]
        assert np.isfinite(found).all(), name
        if np.linalg.norm(wanted) > 1e-3:
            assert np.vdot(found, wanted) > 0.8 * np.linalg.norm(found) * np.linalg.norm(wanted), name
    # A head that is 1e-4 off its codes says something else by as much; rounded it would not.
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["head"]["kernel"] = moved["head"]["kernel"] + 1e-4
    assert np.abs(said(moved, True) - rounded).max() > 0


def test_modules_that_were_bound_before_stay_float() -> None:
    params, images = random_params(SMALL), jnp.asarray(smooth_images(SMALL, 4))
    before = bind(SMALL, params)
    wanted = before(images)
    in_eight_bits(bind(SMALL, params))
    np.testing.assert_array_equal(before(images), wanted)
    np.testing.assert_array_equal(bind(SMALL, params)(images), wanted)


def test_only_the_last_steps_of_a_run_are_rounded() -> None:
    """A learning rate of nearly nothing, so that every step sees the same weights and its loss tells how it computed."""
    losses = {}
    for name, last in {"never": 0, "late": 2, "always": 3}.items():
        steps = Steps(total_steps=3, base_lr=1e-20, qat_steps=last)
        losses[name] = [steps.take(batch())["loss"] for _ in range(3)]
    never, always = losses["never"][0], losses["always"][0]
    assert abs(never - always) > 1e-5
    np.testing.assert_allclose(losses["late"], [never, always, always], atol=1e-6)
