from typing import Any

import numpy as np
import pytest

from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import streams
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array
from trainer.description import Block
from trainer.models.build import Params

BLOCK = SMALL.blocks[0]
ROUNDING = 2e-5  # of float32 sums of O(1), through softmax and projection


def _setting(seed: int = 0) -> tuple[Params, Array]:
    """The parameters of one block, and the residual stream of 200 images before it."""
    params = random_params(SMALL, seed)
    return params["blocks"]["0"], streams.embed(SMALL, params, smooth_images(SMALL, 200, seed), 64)


def _run(block: Block, params: Params, stream: Array) -> Array:
    return np.asarray(streams.attention_branch(SMALL, block)(params, stream)[0])


def _moments(params: Params, stream: Array) -> tuple[tuple[Array, Array], Array, Array]:
    norm, averaged = streams.attention_moments(SMALL, BLOCK, params, stream, 64)
    covariances, means = zip(*(moments.covariance() for moments in averaged))
    return norm.covariance(), np.stack(covariances), np.stack(means)


def _cut(params: Params, stream: Array, qk_dim: int, v_dim: int) -> tuple[Block, Params]:
    norm, covariances, means = _moments(params, stream)
    attention = cut_query_key(params["attention"], *norm, qk_dim)
    attention = cut_value_output(attention, covariances, means, v_dim)
    return Block(BLOCK.num_heads, qk_dim, v_dim, BLOCK.mlp_dim), {**params, "attention": attention}


def _error(block: Block, params: Params, original: Params, stream: Array) -> float:
    return float(np.mean((_run(block, params, stream) - _run(BLOCK, original, stream)) ** 2))


def _first_dims(params: Params, names: tuple[str, ...], chosen: Array) -> Params:
    """The block with only the dims `chosen` (N, dims) of each head in the layers called `names`."""
    heads = np.arange(BLOCK.num_heads)[:, None]
    attention: dict[str, Any] = dict(params["attention"])
    for name in names:
        layer = attention[name]
        if name == "out":
            attention[name] = {**layer, "kernel": layer["kernel"][heads, chosen]}
        else:
            attention[name] = {
                "kernel": layer["kernel"][:, heads, chosen],
                "bias": layer["bias"][heads, chosen],
            }
    return {**params, "attention": attention}


def test_full_rank_changes_nothing_in_what_attention_adds() -> None:
    params, stream = _setting()
    block, cut = _cut(params, stream, BLOCK.qk_dim, BLOCK.v_dim)
    assert not np.allclose(cut["attention"]["query"]["kernel"], params["attention"]["query"]["kernel"])
    np.testing.assert_allclose(_run(block, cut, stream), _run(BLOCK, params, stream), atol=ROUNDING)


def test_more_dims_than_the_stream_has_channels_are_filled_with_zeros_and_change_nothing() -> None:
    params, stream = _setting()
    wide, wider = _cut(params, stream, 20, 20)  # of 8 dims each, in a stream of 16 channels
    assert wider["attention"]["query"]["kernel"].shape == (16, 2, 20)
    np.testing.assert_allclose(_run(wide, wider, stream), _run(BLOCK, params, stream), atol=ROUNDING)


def test_dropping_dims_that_do_nothing_is_exact_though_the_model_divides_by_another_root() -> None:
    params, stream = _setting()
    attention = {name: dict(layer) for name, layer in params["attention"].items()}
    for name in (
        "query",
        "key",
    ):  # five of eight dims are null; the logits are still divided by the root of eight
        attention[name] = {part: np.array(value) for part, value in attention[name].items()}
        attention[name]["kernel"][..., 3:], attention[name]["bias"][..., 3:] = 0, 0
    attention["out"] = {**attention["out"], "kernel": np.array(attention["out"]["kernel"])}
    attention["out"]["kernel"][:, 3:] = 0
    params = {**params, "attention": attention}
    # The bias adds one direction to the three, which the key's constant part cannot use: three dims are enough.
    block, cut = _cut(params, stream, 3, 3)
    np.testing.assert_allclose(_run(block, cut, stream), _run(BLOCK, params, stream), atol=ROUNDING)
    unscaled = {**cut["attention"]["query"]}
    unscaled = {part: value * np.float32(np.sqrt(8 / 3)) for part, value in unscaled.items()}
    wrong = {**cut, "attention": {**cut["attention"], "query": unscaled}}
    assert (
        np.abs(_run(block, wrong, stream) - _run(BLOCK, params, stream)).max() > 0.05
    )  # the test can see the scale


@pytest.mark.parametrize("dims", [2, 4, 6])
def test_whitened_truncation_of_query_and_key_beats_the_dims_of_largest_norm(dims: int) -> None:
    params, stream = _setting()
    block, cut = _cut(params, stream, dims, BLOCK.v_dim)
    query, key = (params["attention"][name]["kernel"] for name in ("query", "key"))
    strength = np.linalg.norm(query, axis=0) * np.linalg.norm(key, axis=0)
    chosen = _first_dims(params, ("query", "key"), np.argsort(-strength)[:, :dims])
    scale = np.float32(np.sqrt(dims / BLOCK.qk_dim))
    scaled = {part: value * scale for part, value in chosen["attention"]["query"].items()}
    chosen = {**chosen, "attention": {**chosen["attention"], "query": scaled}}
    assert _error(block, cut, params, stream) < 0.5 * _error(block, chosen, params, stream)


@pytest.mark.parametrize("dims", [2, 4, 6])
def test_whitened_truncation_of_value_and_output_beats_the_dims_of_largest_norm(dims: int) -> None:
    params, stream = _setting()
    block, cut = _cut(params, stream, BLOCK.qk_dim, dims)
    value, out = (params["attention"][name]["kernel"] for name in ("value", "out"))
    strength = np.linalg.norm(value, axis=0) * np.linalg.norm(out, axis=2)
    chosen = _first_dims(params, ("value", "out"), np.argsort(-strength)[:, :dims])
    assert _error(block, cut, params, stream) < 0.5 * _error(block, chosen, params, stream)


def test_the_mean_contribution_of_values_moves_into_the_output_bias() -> None:
    params, stream = _setting()
    block, cut = _cut(params, stream, BLOCK.qk_dim, 1)
    heads = np.asarray(streams.attention_branch(SMALL, block)(cut, stream)[1]["heads"])
    np.testing.assert_allclose(
        heads.mean((0, 1)), 0, atol=1e-5
    )  # what is left is centred: a mean of 800 rounded rows
    # So dims can be lost without moving the mean of what attention adds.
    wanted = _run(BLOCK, params, stream).mean((0, 1))
    np.testing.assert_allclose(_run(block, cut, stream).mean((0, 1)), wanted, atol=1e-5)
    np.testing.assert_allclose(cut["attention"]["out"]["bias"], wanted, atol=1e-5)


def test_dims_come_in_the_order_of_what_they_contribute() -> None:
    params, stream = _setting()
    _, cut = _cut(params, stream, BLOCK.qk_dim, BLOCK.v_dim)
    norm, covariances, _ = _moments(params, stream)
    query = cut["attention"]["query"]["kernel"]
    value, out = cut["attention"]["value"]["kernel"], cut["attention"]["out"]["kernel"]
    for head in range(BLOCK.num_heads):
        variances = np.einsum("dv,de,ev->v", value[:, head], covariances[head], value[:, head])
        contributed = variances * np.sum(out[head] ** 2, axis=1)
        assert (np.diff(contributed) <= 1e-6).all()  # descending, but for rounding
        # Both factors carry half of each singular value; the mean query's row is missing here, so this is no strict order.
        energy = np.einsum("dv,de,ev->v", query[:, head], norm[0], query[:, head])
        assert energy[0] > energy[-1]
