"""The residual stream of a set of images, carried through a model one branch at a time.

Streams live on the host, (images, T, D), so that calibration is bounded by the host's memory and not by the device's; each
branch runs in batches of one compiled function. Streams keep a token for every patch, also of a model that merges tokens: what is
fitted on them holds for either. Only `logits` says what such a model says.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress.moments import Array, Moments
from trainer.description import Block, ViT
from trainer.models.build import Params, bind, bind_block
from trainer.models.encoder import Taps
from trainer.models.vit import head_names

KEPT_BYTES = 2**30  # that streams of a walk may take all together
_AT_ONCE = 2  # batches
# The layers of a branch that read the stream.
READERS = {"attention": ("query", "key", "value"), "mlp": ("fc1",)}
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Branch:
    """One branch of a block, compiled once per shape; it reads those `parts` of a block's parameters."""

    parts: tuple[str, str]
    _run: Callable[[Params, Any], tuple[jax.Array, Taps]]
    _after: Callable[[Params, Any], jax.Array]

    def __call__(self, params: Params, stream: Any) -> tuple[jax.Array, Taps]:
        """(block's parameters, stream (B, T, D), on the host or on the device) → (what the branch adds, taps)."""
        return self._run({name: params[name] for name in self.parts}, stream)

    def after(self, params: Params, stream: Any) -> jax.Array:
        """The stream after the branch; without the taps, which cost more to write than some branches to compute."""
        return self._after({name: params[name] for name in self.parts}, stream)


BranchOf = Callable[[ViT, Block], Branch]


def attention_branch(model: ViT, block: Block) -> Branch:
    """The attention of `block`."""
    return _attention(dataclasses.replace(model, blocks=()), dataclasses.replace(block, mlp_dim=0))


@functools.lru_cache(maxsize=128)
def _attention(model: ViT, block: Block) -> Branch:
    return _compiled(("norm1", "attention"), lambda params, x: bind_block(model, block, params).attend(x))


def mlp_branch(model: ViT, block: Block) -> Branch:
    """The MLP of `block`."""
    return _mlp(dataclasses.replace(model, blocks=()), Block(0, 0, 0, block.mlp_dim))


@functools.lru_cache(maxsize=128)
def _mlp(model: ViT, block: Block) -> Branch:
    return _compiled(("norm2", "mlp"), lambda params, x: bind_block(model, block, params).transform(x))


def _compiled(parts: tuple[str, str], branch: Callable[[Params, Any], tuple[jax.Array, Taps]]) -> Branch:
    return Branch(parts, jax.jit(branch), jax.jit(lambda params, x: x + branch(params, x)[0]))


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
    return in_batches(branch.after, params, stream, size)


def walk(model: ViT, params: Params, images: Array, size: int) -> Iterator[Array]:
    """The stream before the first branch, and after each one."""
    stream = embed(model, params, images, size)
    yield stream
    for _, branch, own in branches(model, params):
        stream = add_branch(branch, own, stream, size)
        yield stream


def branches(model: ViT, params: Params) -> Iterator[tuple[int, Branch, Params]]:
    """Every branch in the order of the stream: its block's index, the branch, and the block's parameters."""
    for index, block in enumerate(model.blocks):
        for exists, branch in ((block.num_heads, attention_branch), (block.mlp_dim, mlp_branch)):
            if exists:
                yield index, branch(model, block), params["blocks"][str(index)]


def walked_bytes(model: ViT) -> int:
    """What `walk` makes of one image, all of it held at once."""
    count = sum((block.num_heads > 0) + (block.mlp_dim > 0) for block in model.blocks)
    return 4 * model.num_tokens * model.width * (1 + count)


def hidden_moments(branch: Branch, params: Params, stream: Array, size: int) -> Moments:
    """Moments of what the second dense layer of an MLP reads behind a stream (images, T, D)."""
    hidden = Moments()
    for _, (_, taps) in ahead(branch, params, stream, size):
        hidden.add(taps["hidden"])
    hidden.require_enough("the MLP")
    return hidden


def features(model: ViT, params: Params, stream: Array, size: int) -> Array:
    """What each head reads, (images, R, D), of the stream after the last block."""
    bare = dataclasses.replace(model, blocks=())
    return in_batches(_readout(bare), {**params, "blocks": {}}, stream, size)


def through(model: ViT, blocks: Params, stream: Any, first: int, last: int) -> jax.Array:
    """The stream (B, T, D) after the blocks from `first` until `last`, on the device all the way.

    Where `blocks` has no parameters of a branch, the stream passes it by.
    """
    for index in range(first, last):
        block, own = model.blocks[index], blocks[str(index)]
        for name, branch in (("attention", attention_branch), ("mlp", mlp_branch)):
            if name in own:
                stream = branch(model, block).after(own, stream)
    return jnp.asarray(stream)


def logits_behind(model: ViT, params: Params, stream: Array, first: int, size: int) -> Array:
    """What the heads say, (images, classes), of the stream (images, T, D) before block `first`."""
    reading, rest = _reading(dataclasses.replace(model, blocks=())), {**params, "blocks": {}}

    def said(blocks: Params, stream: Any) -> jax.Array:
        return reading(rest, through(model, blocks, stream, first, len(model.blocks)))

    # A model without blocks has no such parameters.
    return in_batches(said, params.get("blocks", {}), stream, size)


def read(model: ViT, params: Params, stream: jax.Array) -> jax.Array:
    """What the heads say on average, (B, classes), of the stream (B, T, D) after the last block."""
    features = bind(dataclasses.replace(model, blocks=()), {**params, "blocks": {}}).features(stream)
    said = [
        features[:, place] @ params[name]["kernel"] + params[name]["bias"]
        for place, name in enumerate(head_names(model))
    ]
    return jnp.mean(jnp.stack(said), axis=0)


@functools.lru_cache(maxsize=128)
def _reading(model: ViT) -> Callable[[Params, jax.Array], jax.Array]:
    return jax.jit(functools.partial(read, model))


def logits(model: ViT, params: Params, images: Array, size: int) -> Array:
    """Normalised images → logits (images, classes), branch by branch: shares what is compiled with the repair.

    A model that merges tokens runs as a whole.
    """
    if any(block.merge for block in model.blocks):
        return logits_of_whole(model, params, images, size)
    return logits_behind(model, params, embed(model, params, images, size), 0, size)


def logits_of_whole(model: ViT, params: Params, images: Array, size: int) -> Array:
    """As `logits`, by a function compiled for this model alone: faster from a few thousand images on."""
    return in_batches(_whole(model), params, images, size)


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
    for _, (_, taps) in ahead(branch, params, stream, size):
        norm.add(taps["norm"])
        for head, moments in enumerate(averaged):
            moments.add(jnp.matmul(taps["weights"][:, head], taps["norm"]))
    norm.require_enough("the attention input")
    return norm, averaged


def in_batches(run: Callable[[Params, Any], jax.Array], params: Params, inputs: Array, size: int) -> Array:
    """What `run` makes of `inputs`, `size` at a time."""
    return np.concatenate([np.asarray(made) for _, made in ahead(run, params, inputs, size)])


def ahead(
    run: Callable[[Params, Any], Made], params: Params, inputs: Array, size: int
) -> Iterator[tuple[slice, Made]]:
    """What `run` makes of each batch of `inputs`, in their order, made while those before are used."""

    def made(rows: slice) -> Made:
        return jax.block_until_ready(run(params, inputs[rows]))

    # Half of a branch is not matrix products, and XLA runs much of that on one core: a second batch keeps the others busy.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = collections.deque[tuple[slice, Future[Made]]]()
        for rows in batches(len(inputs), size):
            waiting.append((rows, pool.submit(made, rows)))
            if len(waiting) > _AT_ONCE:
                rows, future = waiting.popleft()
                yield rows, future.result()
        for rows, future in waiting:
            yield rows, future.result()
