"""The residual stream of a set of images, carried through a model one branch at a time.

Streams live on the host, (images, T, D), so that calibration is bounded by the host's memory and not by the device's; each
branch runs in batches of one compiled function. Streams keep a token for every patch, also of a model that merges tokens: what is
fitted on them holds for either. Only `logits` says what such a model says.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress.moments import Array, Moments
from trainer.description import Block, ViT
from trainer.models.build import Params, bind, bind_block
from trainer.models.encoder import Taps
from trainer.models.vit import head_names

Branch = Callable[[Params, Any], tuple[jax.Array, Taps]]  # the stream may lie on the host or on the device
BranchOf = Callable[[ViT, Block], Branch]


def attention_branch(model: ViT, block: Block) -> Branch:
    """(block's parameters, stream (B, T, D)) → (what attention adds, taps), compiled once per shape."""
    run = _compiled_attention(dataclasses.replace(model, blocks=()), dataclasses.replace(block, mlp_dim=0))
    return lambda params, x: run({name: params[name] for name in ("norm1", "attention")}, x)


@functools.lru_cache(maxsize=128)
def _compiled_attention(model: ViT, block: Block) -> Branch:
    return jax.jit(lambda params, x: bind_block(model, block, params).attend(x))


def mlp_branch(model: ViT, block: Block) -> Branch:
    """(block's parameters, stream (B, T, D)) → (what the MLP adds, taps), compiled once per shape."""
    run = _compiled_mlp(dataclasses.replace(model, blocks=()), Block(0, 0, 0, block.mlp_dim))
    return lambda params, x: run({name: params[name] for name in ("norm2", "mlp")}, x)


@functools.lru_cache(maxsize=128)
def _compiled_mlp(model: ViT, block: Block) -> Branch:
    return jax.jit(lambda params, x: bind_block(model, block, params).transform(x))


@jax.jit
def normed(norm: Params, eps: float, stream: Any) -> jax.Array:
    """LayerNorm (…, D) of a stream (…, D), by a norm's scale and bias."""
    return jax.nn.standardize(stream, axis=-1, epsilon=eps) * norm["scale"] + norm["bias"]


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` rows, at most `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@functools.lru_cache(maxsize=128)
def _embedding(model: ViT) -> Callable[[Params, jax.Array], jax.Array]:
    return jax.jit(lambda params, images: bind(model, params).embed(images))


@functools.lru_cache(maxsize=128)
def _readout(model: ViT) -> Callable[[Params, jax.Array], jax.Array]:
    # Blocks play no part; leaving them out compiles once for all cuts of one teacher.
    bare = dataclasses.replace(model, blocks=())
    return jax.jit(lambda params, x: bind(bare, {**params, "blocks": {}}).features(x))


@functools.lru_cache(maxsize=32)
def _whole(model: ViT) -> Callable[[Params, jax.Array], jax.Array]:
    return jax.jit(lambda params, images: bind(model, params)(images))


def embed(model: ViT, params: Params, images: Array, size: int) -> Array:
    """Normalised images (images, H, W, C) → the stream before the first block."""
    bare = dataclasses.replace(model, blocks=())
    return in_batches(_embedding(bare), {**params, "blocks": {}}, images, size)


def add_branch(branch: Branch, params: Params, stream: Array, size: int) -> Array:
    """The stream after `branch`."""
    return stream + in_batches(lambda params, x: branch(params, x)[0], params, stream, size)


def walk(model: ViT, params: Params, images: Array, size: int) -> Iterator[Array]:
    """The stream before the first branch, and after each one."""
    stream = embed(model, params, images, size)
    yield stream
    for index, block in enumerate(model.blocks):
        own = params["blocks"][str(index)]
        for exists, branch in ((block.num_heads, attention_branch), (block.mlp_dim, mlp_branch)):
            if exists:
                stream = add_branch(branch(model, block), own, stream, size)
                yield stream


def features(model: ViT, params: Params, stream: Array, size: int) -> Array:
    """What each head reads, (images, R, D), of the stream after the last block."""
    bare = dataclasses.replace(model, blocks=())
    return in_batches(_readout(bare), {**params, "blocks": {}}, stream, size)


def logits(model: ViT, params: Params, images: Array, size: int) -> Array:
    """Normalised images → logits (images, classes), branch by branch: shares what is compiled with the repair.

    A model that merges tokens runs as a whole.
    """
    if any(block.merge for block in model.blocks):
        return in_batches(_whole(model), params, images, size)
    *_, stream = walk(model, params, images, size)
    read = features(model, params, stream, size)
    said = [said_by(params[name], read[:, index]) for index, name in enumerate(head_names(model))]
    return np.mean(said, axis=0)


def said_by(head: Params, read: Array) -> Array:
    """The logits (images, classes) of one head that reads (images, D)."""
    return read @ np.asarray(head["kernel"]) + np.asarray(head["bias"])


def attention_moments(
    model: ViT, block: Block, params: Params, stream: Array, size: int
) -> tuple[Moments, list[Moments]]:
    """Moments of what the heads of a block read: the LayerNorm output, and for each head its attention-weighted average."""
    branch, norm, averaged = (
        attention_branch(model, block),
        Moments(),
        [Moments() for _ in range(block.num_heads)],
    )
    for rows in batches(len(stream), size):
        taps = branch(params, stream[rows])[1]
        norm.add(taps["norm"])
        for head, moments in enumerate(averaged):
            moments.add(jnp.matmul(taps["weights"][:, head], taps["norm"]))
    norm.require_enough("the attention input")
    return norm, averaged


def in_batches(run: Callable[[Params, Any], jax.Array], params: Params, inputs: Array, size: int) -> Array:
    return np.concatenate([np.asarray(run(params, inputs[rows])) for rows in batches(len(inputs), size)])
