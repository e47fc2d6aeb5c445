"""What it costs to make one part of one layer smaller: KL to the teacher with that part cut and repaired and all others whole.

A loss is measured for few sizes and read between them, linearly in its logarithm, because it grows by factors and not by
amounts; towards the whole, which loses nothing, linearly. Cuts are
carried out at the teacher's own shapes (what is gone are zeros), so that nothing is compiled for a size, and repairs need no
pass of their own: the moments of a layer serve all its sizes. What the sum of the losses leaves out, how cuts of several layers
meet, is measured afterwards (`search`).

Shapes: B batch, T tokens, D width, N heads, K query/key dim, V value dim, F mlp dim.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special

from serving.command import progress
from trainer.compress import streams
from trainer.compress.allocate import best
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array, Moments, damped, of_layer
from trainer.compress.padding import padded
from trainer.compress.scores import LayerScores, Scores
from trainer.description import Block, ViT
from trainer.models.build import Params

# Fractions at which losses are measured, besides none and all. Dims and neurons are missed gradually, a head is not.
_THIN = (1 / 2, 1 / 4, 1 / 8)
_PARTS = {"heads": (3 / 4, 1 / 2), "query_key": _THIN, "value": _THIN, "mlp": _THIN, "block": ()}
_REMOVABLE = ("heads", "mlp", "block")
_LEAST_LOSS = 1e-7  # nats an image: below what a few hundred images can tell from nothing


@dataclasses.dataclass(frozen=True)
class Curve:
    """Losses in nats an image by the size that is kept, from the least measured size to the whole, whose loss is 0."""

    sizes: tuple[int, ...]
    losses: tuple[float, ...]

    def at(self, size: int) -> float:
        """The loss of keeping `size`; below the least measured size it goes on growing as it does there."""
        *measured, whole = self.sizes
        if size >= whole or not measured:
            return 0.0
        losses = np.maximum(self.losses[:-1], _LEAST_LOSS)
        if size >= measured[-1]:
            return float(losses[-1] * (whole - size) / (whole - measured[-1]))
        if size < measured[0] and len(measured) > 1:
            steps = (measured[0] - size) / (measured[1] - measured[0])
            return float(losses[0] * (losses[0] / losses[1]) ** steps)
        return float(np.exp(np.interp(size, measured, np.log(losses))))


def falling(sizes: Sequence[int], losses: Sequence[float], full: int) -> Curve:
    """The curve of `losses` measured at `sizes`, the least first: what is smaller loses no less, but for the noise of few."""
    rising = np.maximum.accumulate([0.0, *reversed(losses)])[::-1]
    return Curve((*sizes, full), tuple(float(loss) for loss in rising))


# A block's parameters, at its own shape, by the size that is kept of one kind.
Smaller = Callable[[int], Params]
LayerCurves = Mapping[str, Curve]  # heads, query_key, value, mlp, block; heads, mlp and block from 0 on
# By layer; behind these the units of a stem (stem), and the residual stream (width).
Losses = Sequence[LayerCurves]


def plain(losses: Losses) -> list[dict[str, list[list[float]]]]:
    """Losses as plain JSON values."""
    return [{kind: [list(curve.sizes), list(curve.losses)] for kind, curve in one.items()} for one in losses]


def read(values: Any) -> Losses:
    """The inverse of `plain`."""
    return [
        {kind: Curve(tuple(sizes), tuple(losses)) for kind, (sizes, losses) in one.items()} for one in values
    ]


def divergence(teacher: Array, student: Array) -> float:
    """Mean KL(teacher ‖ student) in nats of two sets of logits (images, classes)."""
    old, new = (scipy.special.log_softmax(logits, axis=-1) for logits in (teacher, student))
    return float(np.mean(np.sum(np.exp(old) * (old - new), axis=-1)))


def measure(
    teacher: ViT,
    params: Params,
    scores: Scores,
    fitted: Array,
    held_out: Array,
    batch: int,
    ridge: float,
    blocks: bool,
) -> Losses:
    """The losses of every layer, with those of whole `blocks` or without.

    Repaired on images `fitted`, judged on images `held_out`, both normalised (images, H, W, C).
    """
    table = Table(teacher, params, held_out, batch)
    stream = streams.embed(teacher, params, fitted, batch)
    found: list[LayerCurves] = []
    with progress(len(teacher.blocks), "losses") as bar:
        for index, block in enumerate(teacher.blocks):
            own, curves = params["blocks"][str(index)], dict[str, Curve]()
            for exists, branch, smaller in (
                (block.num_heads, streams.attention_branch, _Attention),
                (block.mlp_dim, streams.mlp_branch, _Mlp),
            ):
                if exists:
                    with of_layer(index):
                        cuts = smaller(teacher, block, own, stream, batch, ridge).cuts(scores[str(index)])
                    curves |= {kind: table.curve(index, kind, *one) for kind, one in cuts.items()}
                    stream = streams.add_branch(branch(teacher, block), own, stream, batch)
            if blocks and block.num_heads and block.mlp_dim:
                curves["block"] = table.curve(index, "block", 1, lambda _: {})
            table.advance()
            found.append(curves)
            bar.advance()
    return found


class Table:
    """The teacher on the held-out images, up to the layer that is changed."""

    def __init__(self, teacher: ViT, params: Params, held_out: Array, batch: int) -> None:
        self._model, self._params, self._batch, self._layer = teacher, params, batch, 0
        self._stream = streams.embed(teacher, params, held_out, batch)
        self._wanted = self._said(self._stream, params["blocks"])

    def curve(self, index: int, kind: str, full: int, cut: Smaller) -> Curve:
        """The loss of layer `index` by size, whose parameters are those of `cut`."""
        none = {0} if kind in _REMOVABLE else set()
        sizes = sorted({int(full * part) for part in _PARTS[kind]} - {0, full} | none)
        losses = []
        for size in sizes:
            changed = cut(size)
            blocks = {**self._params["blocks"], str(index): changed}
            losses.append(divergence(self._wanted, self._said(self._stream, blocks)))
        return falling(sizes, losses, full)

    def loss_of(self, stream: Array) -> float:
        """The loss of what made `stream` (images, T, D) out of the held-out images, up to this layer."""
        return divergence(self._wanted, self._said(stream, self._params["blocks"]))

    def advance(self) -> None:
        """On to the next layer."""
        model, at = self._model, self._layer

        def run(blocks: Params, stream: Array) -> jax.Array:
            return streams.through(model, blocks, stream, at, at + 1)

        self._stream = streams.in_batches(run, self._params["blocks"], self._stream, self._batch)
        self._layer = at + 1

    def _said(self, stream: Array, blocks: Params) -> Array:
        """The logits (images, classes) from the stream before the layer that is changed."""
        params = {**self._params, "blocks": blocks}
        return streams.logits_behind(self._model, params, stream, self._layer, self._batch)


class _Attention:
    """Smaller versions of one attention branch, at its own shapes."""

    def __init__(
        self, teacher: ViT, block: Block, own: Params, stream: Array, batch: int, ridge: float
    ) -> None:
        self._block, self._own, self._ridge = block, own, ridge
        norm, averaged = streams.attention_moments(teacher, block, own, stream, batch)
        self._norm = norm.covariance()
        self._averaged = [moments.covariance() for moments in averaged]
        branch, outputs = streams.attention_branch(teacher, block), Moments()
        for _, (_, taps) in streams.ahead(branch, own, stream, batch):
            heads = taps["heads"]
            outputs.add(heads.reshape(*heads.shape[:2], -1))
        self._outputs = outputs.covariance()

    def cuts(self, scores: LayerScores) -> dict[str, tuple[int, Smaller]]:
        """What can be made smaller: its whole size, and the block by the size that is kept."""
        return {
            "query_key": (self._block.qk_dim, self._query_key),
            "value": (self._block.v_dim, self._value),
            "heads": (self._block.num_heads, functools.partial(self._heads, scores)),
        }

    def _query_key(self, dim: int) -> Params:
        cut = cut_query_key(self._own["attention"], *self._norm, dim)
        return self._at_own_shape(cut, dataclasses.replace(self._block, qk_dim=dim))

    def _value(self, dim: int) -> Params:
        covariances, means = zip(*self._averaged)
        cut = cut_value_output(self._own["attention"], np.stack(covariances), np.stack(means), dim)
        return self._at_own_shape(cut, dataclasses.replace(self._block, v_dim=dim))

    def _at_own_shape(self, attention: Params, left: Block) -> Params:
        left = dataclasses.replace(left, mlp_dim=0)
        return padded({**self._own, "attention": attention}, left, self._block)

    def _heads(self, scores: LayerScores, count: int) -> Params:
        if not count:
            return {name: value for name, value in self._own.items() if name not in ("attention", "norm1")}
        out, chosen = self._own["attention"]["out"], best(scores["heads"], count)
        width = out["kernel"].shape[-1]
        dims = np.concatenate(
            [np.arange(head * self._block.v_dim, (head + 1) * self._block.v_dim) for head in chosen]
        )
        flat = {"kernel": out["kernel"].reshape(-1, width), "bias": out["bias"]}
        kept = _folded(flat, *self._outputs, dims, self._ridge)
        out = {**kept, "kernel": kept["kernel"].reshape(out["kernel"].shape)}
        return {**self._own, "attention": {**self._own["attention"], "out": out}}


class _Mlp:
    """Smaller versions of one MLP, at its own shape."""

    def __init__(
        self, teacher: ViT, block: Block, own: Params, stream: Array, batch: int, ridge: float
    ) -> None:
        self._own, self._ridge = own, ridge
        branch = streams.mlp_branch(teacher, block)
        self._hidden = streams.hidden_moments(branch, own, stream, batch).covariance()

    def cuts(self, scores: LayerScores) -> dict[str, tuple[int, Smaller]]:
        """As for attention."""
        return {"mlp": (len(self._hidden[1]), functools.partial(self._neurons, scores))}

    def _neurons(self, scores: LayerScores, count: int) -> Params:
        if not count:
            return {name: value for name, value in self._own.items() if name not in ("mlp", "norm2")}
        mlp, kept = self._own["mlp"], np.asarray(best(scores["mlp"], count))
        return {**self._own, "mlp": {**mlp, "fc2": _folded(mlp["fc2"], *self._hidden, kept, self._ridge)}}


def _folded(layer: Params, covariance: Array, mean: Array, kept: Array, ridge: float) -> Params:
    """A dense layer on the inputs `kept` alone, which say what they can of the others; the rows of these are zeros.

    Notes on compression, "repair", 1: the affine least squares of all inputs on those that stay.
    """
    kernel = np.asarray(layer["kernel"], np.float64)
    system = damped(covariance, ridge)[np.ix_(kept, kept)]
    folded = np.linalg.solve(system, covariance[kept] @ kernel)
    new = np.zeros_like(kernel)
    new[kept] = folded
    bias = np.asarray(layer["bias"], np.float64) + mean @ kernel - mean[kept] @ folded
    return {"kernel": new.astype(np.float32), "bias": bias.astype(np.float32)}
