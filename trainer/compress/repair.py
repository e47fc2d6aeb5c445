"""Carries out a plan: cuts arrays for real and repairs what the cut broke, in closed form, walking teacher and student together.

Notes on compression, "repair by least squares", 1 to 6. The stream is rotated first (`width`), then the inner sizes are cut. In
every block the regressors are the student's own activations and the target is what the student's residual stream lacks of the
teacher's, so each fit also mends what earlier blocks left (the sequential target). What reads a narrower stream is fitted to what
the teacher reads. Then what a branch reads by is fitted by turns with its output (`refit`). A branch is left untouched, bit for
bit, while nothing was cut in or before it.

A small model cannot tell all that the teacher's stream holds, and should tell what answers depend on: images of which the teacher
is in doubt count more where readers, outputs and second dense layers are fitted, and the head goes on from least squares to the
teacher's predictions (`readout`).

Shapes: B batch, T tokens, D width of the teacher, w of the student, N heads, V value dim, F mlp dim.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from serving.command import progress
from trainer.compress import cells, readout, refit, stem, stream_fisher, streams, width
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array, Moments, of_layer
from trainer.compress.padding import kept_heads, padded
from trainer.compress.plan import Layer, Plan
from trainer.compress.streams import Branch
from trainer.description import Block, ViT, without_merging
from trainer.models.build import Params
from trainer.models.vit import head_names

REVISION = "3"  # raised with every change of what a plan becomes: stored judgements are of one
_READER_DAMPING = 1e-4  # what readers see of a rotated stream are principal directions: all but uncorrelated
# Neurons that are gone are zeros, whose products are left out in steps of which few are compiled.
_GRAM_STEP = 64
_HEAD_DAMPING = 1e-3  # the head reads few, well-spread features: a tenth of the branches' damping is enough


@dataclasses.dataclass(frozen=True)
class Repair:
    """How to repair: ridge damping as a fraction of the mean variance, and images per batch."""

    ridge: float
    batch: int
    fit: bool = True  # False slices and truncates only: the state of the art to compare with
    predicts: bool = True  # False where answers are embeddings, of which no chance and no doubt can be told
    refits: int = 0  # times that what a branch reads by is fitted too (`refit`)


class Seen:
    """What the teacher makes of calibration images: its stream between all branches, and the stream's principal directions.

    With `keep`, streams stay in memory as long as they are few enough (`streams.KEPT_BYTES`), so that no cut makes them anew.
    """

    def __init__(self, teacher: ViT, params: Params, images: Array, batch: int, keep: bool) -> None:
        self._teacher, self._params, self._images, self._batch = teacher, params, images, batch
        self._kept: list[Array] | None = None
        if keep and len(images) * streams.walked_bytes(teacher) <= streams.KEPT_BYTES:
            self._kept = list(self.walk())

    def walk(self) -> Iterator[Array]:
        """The stream (images, T, D) before the first branch and after each."""
        if self._kept is not None:
            return iter(self._kept)
        return streams.walk(self._teacher, self._params, self._images, self._batch)

    @functools.cached_property
    def doubt(self) -> Array:
        """See `readout.doubt`."""
        if self._kept is None:
            return readout.doubt(streams.logits(self._teacher, self._params, self._images, self._batch))
        read = functools.partial(streams.read, self._teacher)
        return readout.doubt(streams.in_batches(read, self._params, self._kept[-1], self._batch))

    @functools.cached_property
    def directions(self) -> Array:
        """See `width.principal_directions`."""
        fisher = stream_fisher.fisher(self._teacher, self._params, self.walk(), self._batch)
        return width.principal_directions(self._teacher, self.walk(), fisher, self._batch)


def cut(
    teacher: ViT, params: Params, plan: Plan, images: Array, how: Repair, seen: Seen | None = None
) -> tuple[Params, list[str]]:
    """The parameters of `plan.shape_of(teacher)`, and remarks on what could not be fitted.

    `images` are normalised calibration images (images, H, W, C); no label is used. `seen` is what the teacher makes of them,
    for those who cut often. Tokens are merged by neither in here: what is fitted to all tokens serves the merged ones too.

    Raises:
      UserError: when the width is impossible, or there are too few images for the sizes to be fitted.
    """
    teacher = without_merging(teacher)
    seen = seen or Seen(teacher, params, images, how.batch, keep=False)
    to_narrow = None
    if plan.width not in (0, teacher.width):
        width.check_width(teacher, plan.width)
        to_narrow = width.projection(seen.directions, plan.width)
    cut_stem = stem.cut(teacher, params, plan.stem, images, how.batch, how.ridge if how.fit else None)
    doubts = how.fit and how.predicts and teacher.num_classes
    weights = seen.doubt if doubts else np.ones(len(images), np.float32)
    walk = _Walk(teacher, params, to_narrow, seen.walk(), how, cut_stem, weights)
    by_source = {layer.source: layer for layer in plan.layers}
    blocks = []
    # Without refits a cut is short, and a search, which makes many, has a bar of its own.
    with progress(len(teacher.blocks), "repair") if how.refits else contextlib.nullcontext() as bar:
        for index in range(len(teacher.blocks)):
            with of_layer(index):
                blocks.append(walk.through(index, by_source.get(index)))
            if bar:
                bar.advance()
    kept = {
        str(position): block for position, block in enumerate(block for block in blocks if block is not None)
    }
    heads, remarks = walk.heads()
    return {**walk.start, "blocks": kept, **heads}, [*walk.remarks, *remarks]


def select(params: Params, layer: Layer) -> Params:
    """The teacher's block with only the heads and neurons of `layer`; dims per head stay as they are."""
    new: Params = {}
    if layer.heads:
        heads, attention = np.asarray(layer.heads), params["attention"]
        new["norm1"] = params["norm1"]
        new["attention"] = {
            **{
                name: {"kernel": attention[name]["kernel"][:, heads], "bias": attention[name]["bias"][heads]}
                for name in ("query", "key", "value")
            },
            "out": {"kernel": attention["out"]["kernel"][heads], "bias": attention["out"]["bias"]},
        }
    if layer.neurons:
        neurons, mlp = np.asarray(layer.neurons), params["mlp"]
        new["norm2"] = params["norm2"]
        new["mlp"] = {
            "fc1": {"kernel": mlp["fc1"]["kernel"][:, neurons], "bias": mlp["fc1"]["bias"][neurons]},
            "fc2": {"kernel": mlp["fc2"]["kernel"][neurons], "bias": mlp["fc2"]["bias"]},
        }
    return new


class _Walk:
    """Teacher and student streams on the calibration images, taken through the blocks together."""

    def __init__(
        self,
        teacher: ViT,
        params: Params,
        to_narrow: Array | None,
        walked: Iterator[Array],
        how: Repair,
        cut_stem: stem.Cut | None,
        weights: Array,
    ) -> None:
        self._model, self._params, self._how, self._walked = teacher, params, how, walked
        self._narrow, self.start = teacher, params  # the student before its inner sizes are cut
        self.remarks: list[str] = []
        self._teacher = self._student = next(walked)
        self._weights = weights
        self._to_narrow = None if to_narrow is None else to_narrow.astype(np.float32)
        self._cut = self._to_narrow is not None  # whether anything so far differs from the teacher
        if to_narrow is not None:
            self._narrow, self.start = width.narrow(teacher, params, to_narrow)
            self._student = self._teacher @ self._to_narrow
        if cut_stem is not None:
            self._begin_anew(cut_stem)

    def _begin_anew(self, cut_stem: stem.Cut) -> None:
        """The student's stream as its own stem makes it, the patch embedding fitted to what the teacher's makes."""
        patch = self.start["patch"]
        self._cut = self._cut or cut_stem.changed
        if self._how.fit and cut_stem.changed:
            wanted = self._teacher if self._to_narrow is None else self._teacher @ self._to_narrow
            patch, self.remarks = stem.refit_patch(
                self._narrow, self.start, cut_stem.cells, wanted, self._how.batch, self._how.ridge
            )
        self.start = {**self.start, "stem": cut_stem.params, "patch": patch}
        self._student = cells.place(self._narrow, self.start, cut_stem.cells, self._how.batch)

    def through(self, index: int, layer: Layer | None) -> Params | None:
        """The repaired block that `layer` keeps of the teacher's block `index`, or None where it keeps none."""
        original, block = self._params["blocks"][str(index)], self._model.blocks[index]
        left = layer.block if layer else Block(0, 0, 0, 0)
        if not self._cut and left == block:
            self._advance_together(block)
            return original
        whole = self.start["blocks"][str(index)]
        if left.num_heads:
            whole = self._reread("norm1", whole, original)
        if block.num_heads:
            self._teacher = next(self._walked)
        self._cut = self._cut or dataclasses.replace(left, mlp_dim=block.mlp_dim) != block
        student = select(whole, layer) if layer else {}
        if layer and left.num_heads:
            student = self._attention(student, whole, layer, block) if self._cut else student
            self._add(streams.attention_branch, student, left, block)
        self._cut = True  # if the attention is whole, then the MLP was cut
        if layer and left.mlp_dim:
            student |= select(self._reread("norm2", whole, original), dataclasses.replace(layer, heads=()))
        if block.mlp_dim:
            self._teacher = next(self._walked)
        if left.mlp_dim:
            student = self._mlp(student, left, block)
            self._add(streams.mlp_branch, student, left, block)
        return student if layer else None

    def _advance_together(self, block: Block) -> None:
        for exists in (block.num_heads, block.mlp_dim):
            if exists:
                self._teacher = self._student = next(self._walked)

    def _add(self, branch: streams.BranchOf, params: Params, left: Block, block: Block) -> None:
        run, wide = branch(self._narrow, block), padded(params, left, block)
        self._student = streams.add_branch(run, wide, self._student, self._how.batch)

    def _reread(self, norm: str, block: Params, original: Params) -> Params:
        """The student's `block` reading of its own stream what best tells the teacher's input of the same branch."""
        if self._to_narrow is None or not self._how.fit:
            return block
        fit = Moments()
        for rows in streams.batches(len(self._student), self._how.batch):
            read = streams.normed(block[norm], self._narrow.norm_eps, self._student[rows])
            fit.add(
                read,
                streams.normed(original[norm], self._model.norm_eps, self._teacher[rows]),
                self._weights[rows],
            )
        fit.require_enough("the stream")
        # Linear in its targets: one fit serves every layer that reads this norm.
        return width.reread_branch(block, original, norm, *fit.ridge(_READER_DAMPING))

    def _lacking(self, rows: slice | Array) -> jax.Array:
        """What the student's stream (B, T, w) lacks of the teacher's."""
        teacher = jnp.asarray(self._teacher[rows])
        return (teacher if self._to_narrow is None else teacher @ self._to_narrow) - self._student[rows]

    def _attention(self, params: Params, whole: Params, layer: Layer, block: Block) -> Params:
        """Fewer dims per head by whitened SVD, then the output projection fitted to the sequential target."""
        left = layer.block
        attention, heads = params["attention"], list(layer.heads)
        if left.qk_dim < block.qk_dim or left.v_dim < block.v_dim:
            # What the heads read is taken from the uncut block on the student's stream: one pass serves both truncations.
            norm, averaged = streams.attention_moments(
                self._narrow, block, whole, self._student, self._how.batch
            )
            if left.qk_dim < block.qk_dim:
                attention = cut_query_key(attention, *norm.covariance(), left.qk_dim)
            if left.v_dim < block.v_dim:
                covariances, means = zip(*(averaged[head].covariance() for head in heads))
                attention = cut_value_output(attention, np.stack(covariances), np.stack(means), left.v_dim)
        params = {**params, "attention": attention}
        if not self._how.fit:
            return params
        fitted = functools.partial(self._fit_output, left=left, block=block)
        return self._by_turns(streams.attention_branch(self._narrow, left), params, fitted)

    def _fit_output(self, params: Params, left: Block, block: Block) -> Params:
        fit, branch = Moments(), streams.attention_branch(self._narrow, block)
        wide = padded(params, left, block)
        for rows, (_, taps) in streams.ahead(branch, wide, self._student, self._how.batch):
            outputs = taps["heads"]
            fit.add(outputs.reshape(*outputs.shape[:2], -1), self._lacking(rows), self._weights[rows])
        used = kept_heads(left, block)
        fit.require_enough("the attention output", len(used))
        kernel, bias = fit.ridge(self._how.ridge, used)
        out = {"kernel": kernel.reshape(left.num_heads, left.v_dim, -1), "bias": bias}
        return {**params, "attention": {**params["attention"], "out": out}}

    def _mlp(self, params: Params, left: Block, block: Block) -> Params:
        """The second dense layer fitted to the sequential target on the neurons that stay."""
        if not self._how.fit:
            return params
        fitted = functools.partial(self._fit_second, left=left, block=block)
        return self._by_turns(streams.mlp_branch(self._narrow, left), params, fitted)

    def _by_turns(self, branch: Branch, params: Params, fitted: Callable[[Params], Params]) -> Params:
        if not self._how.refits:
            return fitted(params)
        task = refit.Task(self._student, self._lacking, self._weights, self._how.batch)
        return refit.by_turns(branch, fitted(params), task, fitted, self._how.refits)

    def _fit_second(self, params: Params, left: Block, block: Block) -> Params:
        fit, branch = Moments(), streams.mlp_branch(self._narrow, block)
        wide = padded(params, left, block)
        regressors = min(-(-left.mlp_dim // _GRAM_STEP) * _GRAM_STEP, block.mlp_dim)
        for rows, (_, taps) in streams.ahead(branch, wide, self._student, self._how.batch):
            fit.add(taps["hidden"][..., :regressors], self._lacking(rows), self._weights[rows])
        fit.require_enough("the MLP", left.mlp_dim)
        kernel, bias = fit.ridge(self._how.ridge, np.arange(left.mlp_dim))
        return {**params, "mlp": {**params["mlp"], "fc2": {"kernel": kernel, "bias": bias}}}

    def heads(self) -> tuple[Params, list[str]]:
        """Every head fitted to what the teacher says, on the student's features; kept as it is while nothing was cut."""
        names = head_names(self._model)
        heads: Params = {name: self.start[name] for name in names}
        if not self._cut or not self._how.fit:
            return heads, []
        teacher = streams.features(self._model, self._params, self._teacher, self._how.batch)
        student = streams.features(self._narrow, self.start, self._student, self._how.batch)
        fitted: Params = {}
        for index, name in enumerate(names):
            fit, said = Moments(), streams.said_by(self._params[name], teacher[:, index])
            fit.add(jnp.asarray(student[:, index]), jnp.asarray(said))
            if not fit.enough():
                few = f"{fit.rows} images are too few for width {self._narrow.width}"
                return heads, [f"{name} not fitted: {few}"]
            kernel, bias = fit.ridge(_HEAD_DAMPING)
            if self._how.predicts:
                kernel, bias = readout.nearest(student[:, index], said, kernel, bias)
            fitted[name] = {"kernel": kernel, "bias": bias}
        return fitted, []
