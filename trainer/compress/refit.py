"""What a cut branch reads, fitted anew: queries, keys and values of an attention, the first dense layer of an MLP.

What a branch says is linear in its last layer, which least squares fit once and for all. In the layers that read the stream it
is not; about the weights that they have, it nearly is, and the change of them that least squares ask for there is a step of Gauss
and Newton (Nocedal and Wright 2006, 10.3). It minimises what the branch leaves of what its student lacks, on calibration images:
no label, no loss of the model, no rate, and nothing beyond the one branch. A damping of Levenberg and Marquardt's kind counts
as if a few images spoke for the weights as they are.

The system is solved by conjugate gradients, which need products with the Jacobian alone. They are preconditioned by what the
system would be if neurons did not overlap: the covariance of what is read, times how much each neuron's output is heard.

Shapes: B batch, T tokens, w width of the student, n outputs of all readers together.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from trainer.compress import streams
from trainer.compress.moments import Array, damped
from trainer.compress.streams import Branch
from trainer.models.build import Params
from trainer.models.encoder import Taps

PRIOR_IMAGES = 100.0  # that speak for the weights as they are
_ITERATIONS = 4  # of conjugate gradients: what later ones find is the calibration images' own
_SOLVED = 1e-3  # of the gradient: of a branch that is as it should be nothing more is asked
_LEAST, _TINY = 1e-6, 1e-30  # by which a neuron is heard that is not: of the mean, and of what is always 0
_COVARIANCE_DAMPING = 1e-4  # of the mean variance


@dataclasses.dataclass(frozen=True)
class Task:
    """What a branch should do: the student's stream before it, what it should add, and how much each image counts."""

    stream: Array  # (images, T, w)
    lacking: Callable[[Array], jax.Array]  # images, by their places (B,) → (B, T, w)
    weights: Array  # (images,)
    batch: int


@dataclasses.dataclass(frozen=True)
class Found:
    """A branch as it is: the error that it leaves, its gradient by what it reads with, and the system's scales."""

    error: float
    gradient: Array  # (w + 1, n), towards less
    read: Array  # (w + 1, w + 1), sums of products of what is read and 1
    heard: Array  # (n,)


def by_turns(
    branch: Branch, params: Params, task: Task, fitted: Callable[[Params], Params], times: int
) -> Params:
    """`params` of a block whose `branch` reads and says by turns what leaves less of `task`, at most so many `times`.

    `fitted` fits what the branch says, its last layer, and has done so to `params` already.
    """
    found = look(branch, params, task)
    for _ in range(times):
        moved = fitted(step(branch, params, task, found))
        after = look(branch, moved, task)
        if not after.error < found.error:  # NaN is not less either
            break
        params, found = moved, after
    return params


def look(branch: Branch, params: Params, task: Task) -> Found:
    """What a step needs to know of `branch`, whose block has `params`."""

    def looked(params: Params, rows: Array) -> tuple[jax.Array, ...]:
        lacking = task.lacking(rows)
        signs = _signs(int(rows[0]), lacking.shape)
        return _looking(branch)(params, task.stream[rows], lacking, task.weights[rows], signs)

    error, gradient, read, heard = _summed(looked, params, task)
    scale = heard.sum(axis=0) / np.trace(read)
    return Found(float(error), gradient, read, np.maximum(scale, max(_LEAST * scale.mean(), _TINY)))


def step(branch: Branch, params: Params, task: Task, found: Found) -> Params:
    """`params` with what `branch` reads with moved to the least squares about it."""
    metric, shape = damped(found.read, _COVARIANCE_DAMPING), found.gradient.shape
    inverse, held = np.linalg.inv(metric), PRIOR_IMAGES / len(task.stream)

    def curved(flat: Array) -> Array:
        direction = flat.reshape(shape)
        bent = _curvature(branch, params, task, direction)
        return np.asarray(bent + held * (metric @ direction) * found.heard).ravel()

    def alone(flat: Array) -> Array:
        return np.asarray(inverse @ flat.reshape(shape) / found.heard).ravel()

    # Without a type a product is formed to find it out.
    system, preconditioner = (
        LinearOperator((found.gradient.size,) * 2, one, dtype=np.float64) for one in (curved, alone)
    )
    move, _ = cg(system, found.gradient.ravel(), rtol=_SOLVED, maxiter=_ITERATIONS, M=preconditioner)
    moved = _read_by(branch, params, np) + move.reshape(shape)
    return _reading_by(branch, params, moved.astype(np.float32))


def _curvature(branch: Branch, params: Params, task: Task, direction: Array) -> Array:
    moved = direction.astype(np.float32)

    def bent(params: Params, rows: Array) -> tuple[jax.Array, ...]:
        return (_bending(branch)(params, task.stream[rows], task.weights[rows], moved),)

    return _summed(bent, params, task)[0]


def _summed(run: Callable[[Params, Array], tuple[jax.Array, ...]], params: Params, task: Task) -> list[Array]:
    """The sums over all images of what `run` makes of some of them, given by their places; added in float64."""
    total: list[Array] = []
    for _, made in streams.ahead(run, params, np.arange(len(task.stream)), task.batch):
        new = [np.asarray(value, np.float64) for value in made]
        total = [old + more for old, more in zip(total, new, strict=True)] if total else new
    return total


@functools.partial(jax.jit, static_argnums=1)
def _signs(seed: int, shape: tuple[int, ...]) -> jax.Array:
    """Random signs; compiled once and not with every branch."""
    return jax.random.rademacher(jax.random.key(seed), shape, jnp.float32)


@functools.lru_cache(maxsize=128)
def _looking(branch: Branch) -> Callable[..., tuple[jax.Array, ...]]:
    """(block, stream (B, T, w), lacking (B, T, w), weights (B,), signs (B, T, w)) → the parts of a `Found`, `heard` by input.

    How much a neuron is heard is the second moment of the gradient of random `signs`: those of all outputs at once tell it from
    few images (Hutchinson's estimator).
    """

    def looking(
        params: Params, stream: jax.Array, lacking: jax.Array, weights: jax.Array, signs: jax.Array
    ) -> tuple[jax.Array, ...]:
        said = _said(branch, params, stream)
        added, pull, taps = jax.vjp(said, _read_by(branch, params, jnp), has_aux=True)
        left, counts = lacking - added, weights[:, None, None]
        norm = taps["norm"]
        read = jnp.concatenate([norm, jnp.ones_like(norm[..., :1])], axis=-1)
        products = jnp.einsum("bta,btc->ac", counts * read, read, precision=jax.lax.Precision.HIGHEST)
        # Both at once: half as much to compile.
        gradient, drawn = jax.vmap(pull)(jnp.stack([counts * left, jnp.sqrt(counts) * signs]))[0]
        return jnp.sum(counts * jnp.square(left)), gradient, products, jnp.square(drawn)

    return jax.jit(looking)


@functools.lru_cache(maxsize=128)
def _bending(branch: Branch) -> Callable[..., jax.Array]:
    """(block, stream (B, T, w), weights (B,), direction (w + 1, n)) → Jᵀ J direction, each image counted by its weight."""

    def bending(params: Params, stream: jax.Array, weights: jax.Array, direction: jax.Array) -> jax.Array:
        said, at = _said(branch, params, stream), _read_by(branch, params, jnp)
        _, moved, _ = jax.jvp(said, (at,), (direction,), has_aux=True)
        bent: jax.Array = jax.vjp(said, at, has_aux=True)[1](weights[:, None, None] * moved)[0]
        return bent

    return jax.jit(bending)


def _said(branch: Branch, params: Params, stream: jax.Array) -> Callable[[jax.Array], tuple[jax.Array, Taps]]:
    """What reads (w + 1, n) → what `branch` says of the stream, and taps."""
    return lambda readers: branch(_reading_by(branch, params, readers), stream)


def _read_by(branch: Branch, params: Params, xp: Any) -> Any:
    """Kernels and, in the last row, biases of what reads, side by side: (w + 1, n); of `xp`, numpy or what is compiled."""
    part = branch.parts[1]
    layers = [params[part][name] for name in streams.READERS[part]]
    kernels = [layer["kernel"].reshape(len(layer["kernel"]), -1) for layer in layers]
    biases = [layer["bias"].reshape(1, -1) for layer in layers]
    return xp.concatenate([xp.concatenate(kernels, axis=1), xp.concatenate(biases, axis=1)])


def _reading_by(branch: Branch, params: Params, readers: Any) -> Params:
    """The inverse of `_read_by`."""
    part = branch.parts[1]
    new, start = dict(params[part]), 0
    for name in streams.READERS[part]:
        kernel, bias = new[name]["kernel"], new[name]["bias"]
        own = readers[:, start : start + bias.size]
        new[name] = {"kernel": own[:-1].reshape(kernel.shape), "bias": own[-1].reshape(bias.shape)}
        start += bias.size
    return {**params, part: new}
