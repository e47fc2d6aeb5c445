"""What a training computes in, and the average of its weights."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_models import SMALL, UNEVEN, merging, random_params, smooth_images
from tests.support.small_steps import Steps, batch, copied
from trainer.description import ViT
from trainer.forward import Forward
from trainer.models.build import Params
from trainer.models.computing import in_dtype
from trainer.models.layers import Layers
from trainer.models.outputs import Outputs
from trainer.models.regularisation import OFF

HALF = Forward("bfloat16", Layers(), OFF)
MERGED = merging(ViT((16, 16), 1, 4, 16, SMALL.blocks, 10, "gap", "erf"), 3)


def said(forward: Forward, model: ViT, params: Params) -> Outputs:
    return forward.outputs(model, params, jnp.asarray(smooth_images(model, 16)))


@pytest.mark.parametrize("model", [SMALL, UNEVEN, MERGED])
def test_products_are_in_bfloat16_and_logits_in_float32(model: ViT) -> None:
    params = random_params(model)
    program = str(jax.make_jaxpr(lambda params: said(HALF, model, params))(params))
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", program)
    assert set(products) == {"bf16", "f32"}
    # Two of heads, float32 by intent, and what merging adds up in it.
    assert products.count("f32") <= 3
    exponentials = re.findall(r":(\w+)\[[\d,]*\] = exp ", program)
    assert set(exponentials) == {"f32"}
    assert said(HALF, model, params).logits.dtype == jnp.float32


def test_bfloat16_says_nearly_the_same() -> None:
    params = random_params(SMALL)
    half = said(HALF, SMALL, params).logits
    whole = said(Forward("float32", Layers(), OFF), SMALL, params).logits
    # bfloat16 has 8 bits; errors of some 20 roundings in a row add up as their square root: 20 ** 0.5 * 2 ** -9 = 1 %.
    error = float(jnp.sqrt(jnp.mean((half - whole) ** 2) / jnp.mean(whole**2)))
    assert 1e-4 < error < 0.02


def test_parameters_and_gradients_stay_in_float32() -> None:
    steps = Steps(dtype="bfloat16")
    steps.take(batch(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(steps.state.params)} == {jnp.dtype("float32")}
    kept = in_dtype(random_params(SMALL), "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept["blocks"])} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept["head"])} == {"float32"}


def losses(**settings: object) -> list[float]:
    steps = Steps(do=0.1, sd=0.2, **settings)
    return [steps.take(batch(number))["loss"] for number in range(4)]


def test_remat_and_loops_learn_the_same() -> None:
    wanted = losses()
    assert abs(wanted[0] - wanted[-1]) > 1e-2
    for way in ({"remat": "blocks"}, {"scan_blocks": True}, {"remat": "dots", "scan_blocks": True}):
        assert losses(**way) == pytest.approx(wanted, rel=1e-5)


def test_the_average_of_the_weights_is_the_one_of_the_field() -> None:
    steps = Steps(ema_decay=0.5)
    mean: Any = copied(steps.state).params
    for number in range(12):
        steps.take(batch(number))
        kept = min(0.5, (1 + number) / (10 + number))
        new = copied(steps.state).params
        mean = jax.tree.map(lambda old, now, kept=kept: kept * old + (1 - kept) * now, mean, new)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), steps.state.ema, mean
    )
    assert steps.state.evaluated is steps.state.ema
    assert Steps().state.evaluated is not None
