"""How much a teacher's answer depends on each direction of its residual stream: Fisher information of what branches add to it.

Rotations to fewer channels (`width`) give up what neither varies nor matters; principal directions alone know the first.
Gradients are pulled back branch by branch through streams that were walked before, so that two functions are compiled and one
branch is held at a time, however deep the teacher.

Shapes: B batch, T tokens, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress import streams
from trainer.compress.moments import Array
from trainer.compress.streams import Branch
from trainer.description import ViT
from trainer.models.build import Params

_LOOKED_AT = 256  # images, fewer of a large teacher; a direction is looked at once a token


def fisher(teacher: ViT, params: Params, walked: Iterable[Array], size: int, seed: int = 0) -> Array:
    """Σ over the stream's readings of E[g gᵀ] (D, D), g (D,) the gradient of log p with respect to a token.

    `walked` is the stream (images, T, D) before the first branch and after each (`streams.walk`). A reading counts in units of
    its own stream and by the root of its trace: the first ones carry hundreds of times the last one's information, and a
    direction that the last one is not left with is lost to all before it as well.

    Raises:
      ValueError: for a teacher without a head.
    """
    if not teacher.num_classes:
        raise ValueError("a model without a head says nothing that could depend on its stream")
    branches = list(streams.branches(teacher, params))
    most = max(min(_LOOKED_AT, streams.KEPT_BYTES // streams.walked_bytes(teacher)), 1)
    kept = [stream[:most] for stream in walked]
    found = np.zeros((len(kept), teacher.width, teacher.width))
    signs = jax.random.rademacher(jax.random.key(seed), (len(kept[0]), teacher.num_classes), np.float32)
    last, rest = _last_gradient(dataclasses.replace(teacher, blocks=())), {**params, "blocks": {}}
    for rows in streams.batches(len(kept[0]), size):
        gradient = last(jnp.asarray(kept[-1][rows]), rest, signs[rows])
        found[-1] += _outer(gradient)
        for place, (_, branch, own) in reversed(list(enumerate(branches))):
            gradient = _pulled_back(branch)(
                {name: own[name] for name in branch.parts}, kept[place][rows], gradient
            )
            found[place] += _outer(gradient)
    scaled = [
        own * np.mean(np.square(stream, dtype=np.float64)) for own, stream in zip(found, kept, strict=True)
    ]
    return np.sum([own / max(np.sqrt(np.trace(own)), np.finfo(float).tiny) for own in scaled], axis=0)


@functools.lru_cache(maxsize=32)
def _last_gradient(bare: ViT) -> Callable[[jax.Array, Params, jax.Array], jax.Array]:
    """(last stream (B, T, D), parameters without blocks, signs (B, C)) → gradients (B, T, D).

    Their second moment is the Fisher information. Of labels drawn from p nearly all say nothing and few say much. Random signs of
    all classes at once have the same second moment, diag(p) - p pᵀ at the logits, and tell it from far fewer images (Hutchinson's
    estimator).
    """

    def said(stream: jax.Array, params: Params, signs: jax.Array) -> jax.Array:
        logits = streams.read(bare, params, stream)
        chances = jax.lax.stop_gradient(jax.nn.softmax(logits))
        drawn = jnp.sqrt(chances) * signs
        return jnp.sum(logits * (drawn - chances * drawn.sum(axis=-1, keepdims=True)))

    return jax.jit(jax.grad(said))


@functools.lru_cache(maxsize=128)
def _pulled_back(branch: Branch) -> Callable[[Params, Any, jax.Array], jax.Array]:
    """(the branch's parameters, stream before it (B, T, D), gradient behind it) → the gradient before it."""

    def pull(params: Params, stream: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(functools.partial(branch.after, params), stream)[1](gradient)[0]

    return jax.jit(pull)


@jax.jit
def _product(gradient: jax.Array) -> jax.Array:
    flat = gradient.reshape(-1, gradient.shape[-1])
    return jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST)


def _outer(gradient: jax.Array) -> Array:
    return np.asarray(_product(gradient), np.float64)
