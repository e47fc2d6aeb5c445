"""The Vision Transformer: arrays as described, gates, absent branches, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from trainer import description
from trainer.description import Block, ViT
from trainer.models.build import (
    Params,
    bind,
    bind_block,
    check_params,
    flatten,
    init_params,
    param_shapes,
    unflatten,
)
from trainer.models.regularisation import Drop, Regularisation

# Every block with a shape of its own: dims that differ, no attention, no MLP, neither.
MIXED = ViT(
    (8, 8), 1, 4, 16, (Block(2, 3, 5, 7), Block(0, 0, 0, 4), Block(3, 2, 2, 0), Block(0, 0, 0, 0)), 10
)
WHOLE = ViT((8, 8), 1, 4, 16, (Block(2, 4, 6, 8), Block(2, 4, 6, 8)), 10)
# Two ways to the same float32 logits (size about 1) differ by the order of sums over at most 16 terms.
SAME_LOGITS = 1e-5


def random_params(model: ViT) -> Params:
    """Parameters of size 1 / 2 everywhere: fresh ones have a head of zeros, which hides everything before it."""
    rng = np.random.default_rng(0)
    fresh = flatten(param_shapes(model))
    return unflatten(
        {name: 0.5 * rng.standard_normal(leaf.shape, np.float32) for name, leaf in fresh.items()}
    )


def images(model: ViT, count: int = 3) -> np.ndarray:
    shape = (count, *model.image_size, model.channels)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def logits(model: ViT, params: Params, **options: object) -> np.ndarray:
    return np.asarray(bind(model, params)(images(model), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [MIXED, WHOLE, dataclasses.replace(MIXED, pooling="gap")])
def test_the_described_count_is_the_number_of_elements_in_the_arrays(model: ViT) -> None:
    arrays = jax.tree.leaves(jax.eval_shape(lambda: init_params(model, seed=0)))
    assert sum(array.size for array in arrays) == description.param_count(model)


def test_one_seed_gives_one_set_of_parameters_and_another_seed_another() -> None:
    first, again, other = (flatten(init_params(WHOLE, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["patch/kernel"], other["patch/kernel"])


def test_a_fresh_model_answers_nothing_and_every_parameter_is_finite() -> None:
    params = init_params(WHOLE, seed=0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.array_equal(logits(WHOLE, params), np.zeros((3, 10)))


def test_logits_have_one_row_an_image_and_one_column_a_class() -> None:
    assert logits(MIXED, random_params(MIXED)).shape == (3, 10)


def test_a_block_without_attention_is_its_mlp_branch_alone() -> None:
    params = random_params(MIXED)["blocks"]["1"]
    assert "attention" not in params
    block = bind_block(MIXED, MIXED.blocks[1], params)
    assert block.has_mlp
    assert not block.has_attention


def test_a_block_without_branches_can_be_left_out() -> None:
    params = random_params(MIXED)
    shorter = dataclasses.replace(MIXED, blocks=MIXED.blocks[:-1])
    blocks = {index: params["blocks"][index] for index in ("0", "1", "2")}
    assert np.array_equal(logits(MIXED, params), logits(shorter, {**params, "blocks": blocks}))


def _gates(model: ViT, value: float) -> dict[str, dict[str, jax.Array]]:
    def of(block: Block) -> dict[str, jax.Array]:
        n = block.num_heads
        shapes = {
            "heads": (n,),
            "query_key": (n, block.qk_dim),
            "value": (n, block.v_dim),
            "mlp": (block.mlp_dim,),
        }
        shapes |= {"attention": (), "mlp_branch": ()}
        return {name: jnp.full(shape, value) for name, shape in shapes.items()}

    return {str(index): of(block) for index, block in enumerate(model.blocks)}


@pytest.mark.parametrize("model", [MIXED, WHOLE])
def test_gates_of_ones_change_nothing(model: ViT) -> None:
    params = random_params(model)
    assert np.array_equal(logits(model, params, gates=_gates(model, 1.0)), logits(model, params))


def _without(model: ViT, params: Params, unit: str) -> tuple[ViT, Params, dict[str, dict[str, jax.Array]]]:
    """The model without one unit of block 0, cut out for real; and the gates that switch the unit off."""
    gates = _gates(model, 1.0)
    first = dict(params["blocks"]["0"])
    old = model.blocks[0]
    new = old
    if unit == "attention":
        gates["0"]["attention"] = jnp.zeros(())
        new = dataclasses.replace(old, num_heads=0, qk_dim=0, v_dim=0)
        del first["attention"], first["norm1"]
    elif unit == "mlp_branch":
        gates["0"]["mlp_branch"] = jnp.zeros(())
        new = dataclasses.replace(old, mlp_dim=0)
        del first["mlp"], first["norm2"]
    elif unit == "mlp":
        gates["0"]["mlp"] = gates["0"]["mlp"].at[3].set(0.0)
        new = dataclasses.replace(old, mlp_dim=old.mlp_dim - 1)
        fc1, fc2 = first["mlp"]["fc1"], first["mlp"]["fc2"]
        narrow = {"kernel": np.delete(fc1["kernel"], 3, 1), "bias": np.delete(fc1["bias"], 3)}
        first["mlp"] = {"fc1": narrow, "fc2": {**fc2, "kernel": np.delete(fc2["kernel"], 3, 0)}}
    elif unit == "heads":
        gates["0"]["heads"] = gates["0"]["heads"].at[1].set(0.0)
        new = dataclasses.replace(old, num_heads=old.num_heads - 1)
        first["attention"] = _cut_attention(first["attention"], ("query", "key", "value"), 0, 1)
    elif unit == "query_key":
        # The softmax keeps the scale of its old query/key dim: switched off is not yet cut, so the query is scaled in turn.
        gates["0"]["query_key"] = gates["0"]["query_key"].at[:, 2].set(0.0)
        new = dataclasses.replace(old, qk_dim=old.qk_dim - 1)
        first["attention"] = _cut_attention(first["attention"], ("query", "key"), 1, 2)
        rescaled = (new.qk_dim / old.qk_dim) ** 0.5
        query = {name: value * rescaled for name, value in first["attention"]["query"].items()}
        first["attention"] = {**first["attention"], "query": query}
    else:
        gates["0"]["value"] = gates["0"]["value"].at[:, 4].set(0.0)
        new = dataclasses.replace(old, v_dim=old.v_dim - 1)
        first["attention"] = _cut_attention(first["attention"], ("value",), 1, 4)
    cut = dataclasses.replace(model, blocks=(new, *model.blocks[1:]))
    return cut, {**params, "blocks": {**params["blocks"], "0": first}}, gates


def _cut_attention(attention: Params, names: tuple[str, ...], axis: int, at: int) -> Params:
    """`attention` without row `at` of the (N, dim) axes of the named projections; what reads the values loses it too."""
    cut = dict(attention)
    for name in names:
        kernel, bias = attention[name]["kernel"], attention[name]["bias"]
        cut[name] = {"kernel": np.delete(kernel, at, axis + 1), "bias": np.delete(bias, at, axis)}
    if "value" in names:
        cut["out"] = {**attention["out"], "kernel": np.delete(attention["out"]["kernel"], at, axis)}
    return cut


@pytest.mark.parametrize("unit", ["heads", "query_key", "value", "mlp", "attention", "mlp_branch"])
def test_a_unit_whose_gate_is_zero_is_as_good_as_cut_out(unit: str) -> None:
    params = random_params(WHOLE)
    cut, cut_params, gates = _without(WHOLE, params, unit)
    switched_off, whole = logits(WHOLE, params, gates=gates), logits(WHOLE, params)
    assert np.abs(switched_off - whole).max() > 100 * SAME_LOGITS  # the unit mattered
    np.testing.assert_allclose(switched_off, logits(cut, cut_params), atol=SAME_LOGITS, rtol=SAME_LOGITS)


def test_without_a_key_dropout_and_stochastic_depth_are_off() -> None:
    params, rates = random_params(WHOLE), Regularisation(dropout=0.5, stochastic_depth=0.5)
    assert np.array_equal(logits(WHOLE, params, regularisation=rates), logits(WHOLE, params))


@pytest.mark.parametrize("rates", [Regularisation(dropout=0.5), Regularisation(stochastic_depth=0.5)])
def test_with_a_key_the_same_units_drop_for_the_same_key_and_others_for_another(
    rates: Regularisation,
) -> None:
    params = random_params(WHOLE)
    first, again, other = (
        logits(WHOLE, params, regularisation=rates, key=jax.random.key(seed)) for seed in (0, 0, 5)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, logits(WHOLE, params))
    assert not np.array_equal(first, other)


def test_dropout_keeps_the_mean_of_what_it_drops_from() -> None:
    model, params = WHOLE, random_params(WHOLE)
    tokens = np.asarray(bind(model, params).embed(images(model, 1)))
    keys = jax.random.split(jax.random.key(0), 4000)
    drop = jax.vmap(lambda key: Drop(Regularisation(dropout=0.25), key, 2).embedded(tokens))
    # Kept values are x / 0.75, so the deviation of a mean of 4,000 is |x| · sqrt(1/3 / 4000) = 0.0091·|x|; five of them.
    assert np.all(np.abs(drop(keys).mean(0) - tokens) <= 5 * 0.0092 * np.abs(tokens))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("head/bias", (9,), r"x: array head/bias has shape \(9,\), its model description asks for \(10,\)"),
        ("head/bias", None, "array head/bias has shape missing"),
        ("tail/bias", (9,), "array tail/bias .* asks for no such array"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(
    name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    leaves = flatten(random_params(WHOLE))
    leaves.pop(name, None)
    if shape is not None:
        leaves[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=message):
        check_params(WHOLE, unflatten(leaves), "x")


def test_arrays_that_fit_are_accepted() -> None:
    check_params(MIXED, init_params(MIXED, seed=0), "x")


def test_names_of_arrays_survive_flattening() -> None:
    params = random_params(MIXED)
    again = unflatten(flatten(params))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert "blocks/0/attention/query/kernel" in flatten(params)
