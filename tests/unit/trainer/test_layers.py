"""However a model goes through its blocks, it says the same and learns the same."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_models import SMALL, UNEVEN, merging, random_params, smooth_images
from trainer.description import Block, Classifier, Mixer, uniform
from trainer.models.build import Params, bind
from trainer.models.layers import WRITTEN_OUT, Layers, stacked, unstacked
from trainer.models.regularisation import OFF, Regularisation

DEEP = dataclasses.replace(SMALL, blocks=uniform(5, 2, 8, 32))
# Two runs of blocks that are alike, and one alone between them.
RUNS = dataclasses.replace(
    SMALL, blocks=(Block(2, 8, 8, 32),) * 2 + (Block(1, 8, 8, 32),) + (Block(2, 4, 8, 16),) * 3
)
MERGED = merging(dataclasses.replace(DEEP, image_size=(16, 16)), 3, 3)
MIXER = Mixer((8, 8), 1, 4, 16, 3, 8, 24, 10)
MODELS = {"deep": DEEP, "runs": RUNS, "merged": MERGED, "pruned": UNEVEN, "mixer": MIXER}
WAYS = [
    Layers("blocks"),
    Layers("dots"),
    Layers(scan=True),
    Layers("blocks", scan=True),
    Layers("dots", scan=True),
]


def learnt(model: Classifier, layers: Layers, rates: Regularisation = OFF) -> tuple[Any, Params]:
    """(mean square of logits and streams, its gradients) of one batch; random places are dropped where `rates` say so."""
    images = jnp.asarray(smooth_images(model, 4))

    def loss(params: Params) -> jax.Array:
        said = bind(model, params).outputs(images, None, rates, jax.random.key(3), layers)
        return (said.logits**2).mean() + sum((stream**2).mean() for stream in said.blocks)

    return jax.jit(jax.value_and_grad(loss))(random_params(model))


def loops(model: Classifier, layers: Layers) -> int:
    """Loops in the forward pass, before compilation."""
    images = jnp.asarray(smooth_images(model, 4))
    program = jax.make_jaxpr(lambda params: bind(model, params).outputs(images, layers=layers).logits)
    return str(program(random_params(model))).count("scan[")


@pytest.mark.parametrize(
    ("name", "layers"),
    [*(("deep", way) for way in WAYS), *((name, WAYS[-1]) for name in MODELS if name != "deep")],
)
def test_loss_and_gradients_are_those_of_blocks_written_out(name: str, layers: Layers) -> None:
    rates = Regularisation(dropout=0.2, stochastic_depth=0.3)
    (loss, gradients), (wanted, expected) = (
        learnt(MODELS[name], way, rates) for way in (layers, WRITTEN_OUT)
    )
    # The same operations in another order of fusion: float32 sums of some hundred terms. Gradients of key biases are
    # nothing but rounding (softmax does not see them), so the measure is the largest of all.
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6 * largest), gradients, expected)


def test_only_blocks_that_are_alike_and_keep_their_tokens_become_a_loop() -> None:
    counts = {name: loops(model, Layers(scan=True)) for name, model in MODELS.items()}
    assert counts == {"deep": 1, "runs": 2, "merged": 1, "pruned": 0, "mixer": 1}
    assert loops(DEEP, WRITTEN_OUT) == 0


def kept_bytes(layers: Layers) -> int:
    """What is held between forward and backward pass of a long stack of blocks, by the compiler's account."""
    model = dataclasses.replace(SMALL, image_size=(64, 64), blocks=uniform(12, 2, 8, 32))
    images = jnp.asarray(smooth_images(model, 4))

    def loss(params: Params) -> jax.Array:
        return (bind(model, params).outputs(images, layers=layers).logits ** 2).mean()

    compiled = jax.jit(jax.grad(loss)).lower(random_params(model)).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def test_making_activations_anew_takes_less_memory() -> None:
    everything = kept_bytes(Layers(scan=True))
    assert kept_bytes(Layers("blocks", scan=True)) < kept_bytes(Layers("dots", scan=True)) < everything


def test_unstacking_is_the_inverse_of_stacking() -> None:
    blocks = random_params(DEEP)["blocks"]
    given = [blocks[str(index)] for index in range(len(blocks))]
    whole = stacked(given)
    assert whole["attention"]["query"]["kernel"].shape == (5, 16, 2, 8)
    jax.tree.map(np.testing.assert_array_equal, unstacked(whole), given)
