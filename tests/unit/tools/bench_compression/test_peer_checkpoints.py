"""The peer's cut weights in our form: the teacher itself comes back, and a cut head keeps the teacher's attention scale."""

import numpy as np

from tools.bench_compression.peer_checkpoints import Arrays, from_timm
from trainer.description import Block, ViT, uniform
from trainer.models.build import Params, bind, flatten, init_params
from trainer.weights import timm
from trainer.weights.forms import join

TEACHER = ViT((8, 8), 1, 4, 16, uniform(1, 2, 8, 16), 3, pooling="gap", gelu="erf")


def _drawn(seed: int) -> Params:
    import jax

    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), init_params(TEACHER, 0)
    )


def _timm_arrays(params: Params) -> Arrays:
    parts: dict[str, list] = {}
    places = timm.places(TEACHER)
    for name, leaf in flatten(params).items():
        parts.setdefault(places[name].name, []).append((places[name], np.asarray(leaf)))
    return {name: join(some) for name, some in parts.items()}


def test_weights_that_nobody_cut_come_back_as_they_were() -> None:
    params = _drawn(0)
    shape, read = from_timm(TEACHER, _timm_arrays(params))
    assert shape == TEACHER
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(read)[name], leaf)


def test_a_cut_head_keeps_the_scale_of_the_teacher() -> None:
    """Dims that are zero in query, key and value change nothing in the teacher; without them the peer says the same, so must we."""
    params, kept = _drawn(1), [0, 2, 3, 6]
    gone = [dim for dim in range(8) if dim not in kept]
    attention = params["blocks"]["0"]["attention"]
    for part in ("query", "key", "value"):
        attention[part]["kernel"][..., gone] = 0
        attention[part]["bias"][..., gone] = 0
    arrays = _timm_arrays(params)
    rows = [part * 16 + head * 8 + dim for part in range(3) for head in range(2) for dim in kept]
    columns = [head * 8 + dim for head in range(2) for dim in kept]
    for leaf in ("weight", "bias"):
        arrays[f"blocks.0.attn.qkv.{leaf}"] = arrays[f"blocks.0.attn.qkv.{leaf}"][rows]
    arrays["blocks.0.attn.proj.weight"] = arrays["blocks.0.attn.proj.weight"][:, columns]
    shape, cut = from_timm(TEACHER, arrays)
    assert shape.blocks == (Block(2, 4, 4, 16),)
    images = np.random.default_rng(2).normal(size=(2, 8, 8, 1)).astype(np.float32)
    whole, ours = bind(TEACHER, params)(images), bind(shape, cut)(images)
    # One order of summation against another, of logits of about 1.
    np.testing.assert_allclose(ours, whole, atol=1e-5)
