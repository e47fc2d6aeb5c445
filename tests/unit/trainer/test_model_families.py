"""Hybrids, DeiT, Mixer, text towers and pairs: arrays as described, what each head and token reads, what padding does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from tests.support.small_families import (
    BERT,
    CLS,
    DEIT,
    HYBRID,
    MIXER,
    PAIR,
    PAIRS,
    SINGLE,
    TRANSFORMER,
    inputs_for,
    texts,
)
from tests.support.small_models import SMALL, random_params, smooth_images
from trainer import config, description, objectives, optim
from trainer.classifying import Classifying
from trainer.config import MeshShape
from trainer.description import Convolution, Mixer, Stem, TextTower, TwoTowers, ViT
from trainer.distributed.mesh import make_mesh
from trainer.models.build import Params, bind, flatten, init_params, param_shapes, unflatten
from trainer.models.regularisation import Regularisation
from trainer.models.stem import Bottleneck, StandardisedConv
from trainer.step import init_state, make_train_step

# Two ways to the same float32 value of size 1 to 10.
ROUNDING = 1e-5
STYLES = [BERT, TRANSFORMER]


def said(model: ViT | Mixer | TextTower, params: Params, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(bind(model, params)(inputs))


def changed(params: Params, name: str, value: np.ndarray | float) -> Params:
    """`params` with another array under the "/"-joined `name`."""
    leaves = flatten(params)
    return unflatten({**leaves, name: np.broadcast_to(np.float32(value), leaves[name].shape)})


@pytest.mark.parametrize("name", description.variant_names())
def test_a_named_variant_has_as_many_elements_as_its_description_counts(name: str) -> None:
    model = description.named(name, (224, 224), 3, 1000)
    shapes = jax.tree.leaves(param_shapes(model))
    assert sum(leaf.size for leaf in shapes) == description.param_count(model)


def test_fresh_parameters_of_stem_and_texts_are_finite() -> None:
    fresh = init_params(PAIRS["pair with heads and a transformer"], seed=0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fresh))


@pytest.mark.parametrize("model", SINGLE.values(), ids=SINGLE)
def test_every_input_becomes_one_row_of_the_described_outputs(model: ViT | Mixer | TextTower) -> None:
    found = said(model, random_params(model), inputs_for(model, 3))
    assert found.shape == (3, model.num_outputs)
    assert np.isfinite(found).all()


# The stem.


@pytest.mark.parametrize("eps_on", ["deviation", "variance"])
def test_a_kernel_is_standardised_with_its_epsilon_where_the_description_says(eps_on: str) -> None:
    stem = Stem(32, (), kernel_eps=0.3, kernel_eps_on=eps_on)  # type: ignore[arg-type]
    convolution = StandardisedConv(Convolution(1, 5, 32, 1), stem, nnx.Rngs(0))
    kernel = np.random.default_rng(0).normal(2, 3, (1, 1, 5, 32)).astype(np.float32)
    convolution.kernel[...] = jnp.asarray(kernel)
    flat = kernel.reshape(5, 32)
    scale = flat.std(axis=0) + 0.3 if eps_on == "deviation" else np.sqrt(flat.var(axis=0) + 0.3)
    pixel = np.arange(5, dtype=np.float32)
    found = np.asarray(convolution(jnp.asarray(pixel.reshape(1, 1, 1, 5))))
    np.testing.assert_allclose(found.reshape(32), pixel @ ((flat - flat.mean(axis=0)) / scale), atol=ROUNDING)


def test_a_fresh_unit_passes_on_what_it_is_given() -> None:
    unit = Bottleneck(Stem(32, (2,)), stage=0, unit=1, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 3, 128)).astype(np.float32)
    passed, _ = unit(x)
    assert np.array_equal(passed, x)


# The ViT's tokens and heads.


def test_the_class_token_comes_first_then_the_distillation_token_then_the_patches() -> None:
    params, images = random_params(DEIT), smooth_images(DEIT, 2)
    tokens = np.asarray(bind(DEIT, params).embed(images))
    assert tokens.shape == (2, 2 + DEIT.num_patches, DEIT.width)
    for index, name in enumerate(("cls", "dist")):
        expected = params[name][0, 0] + params["pos"][0, index]
        np.testing.assert_array_equal(tokens[:, index], np.broadcast_to(expected, (2, DEIT.width)))


@pytest.mark.parametrize(("silent", "index", "name"), [("head", 1, "head_dist"), ("head_dist", 0, "head")])
def test_logits_are_the_mean_of_both_heads_and_each_reads_its_own_token(
    silent: str, index: int, name: str
) -> None:
    params, images = random_params(DEIT), smooth_images(DEIT, 3)
    params = {**params, silent: jax.tree.map(np.zeros_like, params[silent])}
    module = bind(DEIT, params)
    x = module.embed(images)
    for depth in range(len(DEIT.blocks)):
        x = x + module.block(depth).attend(x)[0]
        x = x + module.block(depth).transform(x)[0]
    read = np.asarray(module.features(x))[:, index]
    half = (read @ params[name]["kernel"] + params[name]["bias"]) / 2
    np.testing.assert_allclose(said(DEIT, params, images), half, atol=ROUNDING)


@pytest.mark.parametrize("model", [CLS, SMALL, HYBRID, MIXER], ids=["cls", "gap", "hybrid", "mixer"])
def test_without_a_head_comes_out_what_the_head_would_read(model: ViT | Mixer) -> None:
    params, images = random_params(model), smooth_images(model, 3)  # type: ignore[arg-type]
    headless = {name: value for name, value in params.items() if name != "head"}
    features = said(dataclasses.replace(model, num_classes=0), headless, images)
    logits = features @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(said(model, params, images), logits, atol=ROUNDING)


# Mixer in place of a ViT.


@pytest.mark.parametrize("rates", [Regularisation(dropout=0.5), Regularisation(stochastic_depth=0.5)])
def test_a_mixer_drops_with_a_key_and_only_with_one(rates: Regularisation) -> None:
    params, images = random_params(MIXER), smooth_images(MIXER, 3)  # type: ignore[arg-type]
    module = bind(MIXER, params)
    plain, off = module(images), module(images, regularisation=rates)
    on, again = (module(images, regularisation=rates, key=jax.random.key(0)) for _ in range(2))
    assert np.array_equal(plain, off)
    assert np.array_equal(on, again)
    assert not np.array_equal(on, off)


@pytest.mark.parametrize("model", [MIXER, HYBRID], ids=["mixer", "hybrid"])
def test_one_training_step_lowers_the_loss_of_its_batch(model: ViT | Mixer) -> None:
    experiment = config.experiment("configs/digits.py:teacher", [("warmup_steps", "1"), ("base_lr", "0.01")])
    mesh, tx = make_mesh(MeshShape(-1, 1, 1)), optim.optimiser(experiment)
    state, placed, _ = init_state(model, tx, mesh, seed=0)
    height, width = model.image_size
    color, half = ("RGB" if model.channels == 3 else "L"), (127.5,) * model.channels
    spec = PreprocessSpec(color=color, height=height, width=width, mean=half, std=half, method="bilinear")
    task = Classifying(experiment, model, spec, objectives.classification(0.0), None, mesh)
    step = make_train_step(experiment, task, tx, placed, mesh)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, height, width, model.channels), np.uint8)),
        "label": jnp.arange(8, dtype=jnp.int32),
    }
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch, None)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(10), abs=1e-4)  # a fresh head says nothing
    assert losses[-1] < losses[0] - 0.1


# Texts.


@pytest.mark.parametrize("length", [1, 3, 5])
def test_padding_does_not_change_what_bert_says(length: int) -> None:
    params, tokens = random_params(BERT), texts(BERT, 3)[:1]
    tokens[:, length:] = 0
    padded, cut = said(BERT, params, tokens), said(BERT, params, tokens[:, :length])
    np.testing.assert_allclose(padded, cut, atol=ROUNDING)


def test_a_text_of_padding_alone_is_a_number_still() -> None:
    assert np.isfinite(said(BERT, random_params(BERT), np.zeros((1, 6), np.int32))).all()


def test_to_the_small_transformer_padding_is_a_token_like_any_other() -> None:
    params, tokens = random_params(TRANSFORMER), texts(TRANSFORMER, 1)
    padded = tokens.copy()
    padded[:, 2] = 0
    assert not np.allclose(said(TRANSFORMER, params, padded), said(TRANSFORMER, params, tokens), atol=1e-2)


@pytest.mark.parametrize(("style", "read"), [(BERT, 0), (TRANSFORMER, 5)], ids=["bert", "transformer"])
def test_bert_reads_the_first_token_and_the_transformer_the_last(style: TextTower, read: int) -> None:
    """Without blocks tokens do not see each other, so that only the one that is read matters."""
    model = dataclasses.replace(style, blocks=())
    params, tokens = random_params(model), texts(model, 1)
    before = said(model, params, tokens)
    for position in range(6):
        other = tokens.copy()
        other[0, position] = tokens[0, position] % 49 + 1
        assert np.array_equal(said(model, params, other), before) == (position != read)


@pytest.mark.parametrize("model", STYLES, ids=["bert", "transformer"])
def test_every_token_sees_those_before_and_behind_it(model: TextTower) -> None:
    params, tokens = random_params(model), texts(model, 1)
    before = said(model, params, tokens)
    for position in range(6):
        other = tokens.copy()
        other[0, position] = tokens[0, position] % 49 + 1
        assert not np.allclose(said(model, params, other), before, atol=1e-3), position


def test_a_text_is_of_the_first_segment() -> None:
    params, tokens = random_params(BERT), texts(BERT, 3)
    before = said(BERT, params, tokens)
    first, second = params["segment"].copy(), params["segment"].copy()
    first[0], second[1] = 0, 0
    assert np.array_equal(said(BERT, changed(params, "segment", second), tokens), before)
    assert not np.allclose(said(BERT, changed(params, "segment", first), tokens), before, atol=1e-3)


def test_a_token_beyond_the_vocabulary_does_not_pass_for_another() -> None:
    tokens = np.full((1, 6), TRANSFORMER.vocab_size, np.int32)
    assert np.isnan(said(TRANSFORMER, random_params(TRANSFORMER), tokens)).all()


@pytest.mark.parametrize(
    ("model", "length", "message"),
    [
        (TRANSFORMER, 5, "texts of 5 tokens do not fit a text tower that takes exactly 6"),
        (TRANSFORMER, 7, "exactly 6"),
        (BERT, 10, "texts of 10 tokens do not fit a text tower that takes at most 9"),
    ],
)
def test_texts_without_positions_for_them_are_refused(model: TextTower, length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        said(model, random_params(model), np.ones((1, length), np.int32))


# Pairs.


@pytest.mark.parametrize("model", PAIRS.values(), ids=PAIRS)
def test_both_towers_make_embeddings_of_length_one_in_one_space(model: TwoTowers) -> None:
    zimg, ztxt = bind(model, random_params(model))(smooth_images(model.image, 2), texts(model.text, 3))
    assert zimg.shape == (2, model.image.num_outputs)
    assert ztxt.shape == (3, model.image.num_outputs)
    for embeddings in (zimg, ztxt):
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_an_embedding_of_zeros_stays_one() -> None:
    params = random_params(PAIR)
    for name in ("text/head/kernel", "text/head/bias", "image/norm/scale", "image/norm/bias"):
        params = changed(params, name, 0.0)
    zimg, ztxt = bind(PAIR, params)(smooth_images(PAIR.image, 2), texts(PAIR.text, 3))
    assert np.array_equal(zimg, np.zeros((2, 16)))
    assert np.array_equal(ztxt, np.zeros((3, 16)))


def test_the_multiplier_is_the_exponential_of_the_parameter() -> None:
    params = changed(random_params(PAIR), "t", 1.5)
    np.testing.assert_allclose(bind(PAIR, params).multiplier(), [np.exp(1.5)], rtol=1e-6)
