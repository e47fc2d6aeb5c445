"""Carries out a plan: cuts arrays for real and repairs what the cut broke, in closed form, walking teacher and student together.

Notes on compression, "repair by least squares", 1 to 6. The stream is rotated first (`width`), then the inner sizes are cut. In
every block the regressors are the student's own activations and the target is what the student's residual stream lacks of the
teacher's, so each fit also mends what earlier blocks left (the sequential target). What reads a narrower stream is fitted to what
the teacher reads. A branch is left untouched, bit for bit, while nothing was cut in or before it.

Shapes: B batch, T tokens, D width of the teacher, w of the student, N heads, V value dim, F mlp dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress import streams, width
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array, Moments
from trainer.compress.plan import Layer, Plan
from trainer.description import Block, ViT
from trainer.models.build import Params
from trainer.models.vit import head_names

_READER_DAMPING = 1e-4  # what readers see of a rotated stream are principal directions: all but uncorrelated
_HEAD_DAMPING = 1e-3  # the head reads few, well-spread features: a tenth of the branches' damping is enough


@dataclasses.dataclass(frozen=True)
class Repair:
    """How to repair: ridge damping as a fraction of the mean variance, and images per batch."""

    ridge: float
    batch: int
    fit: bool = True  # False slices and truncates only: the state of the art to compare with


def cut(
    teacher: ViT, params: Params, plan: Plan, images: Array, how: Repair, directions: Array | None = None
) -> tuple[Params, list[str]]:
    """The parameters of `plan.shape_of(teacher)`, and remarks on what could not be fitted.

    `images` are normalised calibration images (images, H, W, C); no label is used. `directions` are those of
    `width.principal_directions`, found in the images where they are needed and not given.

    Raises:
      UserError: when the width is impossible, or there are too few images for the sizes to be fitted.
    """
    to_narrow = None
    if plan.width not in (0, teacher.width):
        width.check_width(teacher, plan.width)
        if directions is None:
            directions = width.principal_directions(teacher, params, images, how.batch)
        to_narrow = width.projection(directions, plan.width)
    walk = _Walk(teacher, params, to_narrow, images, how)
    by_source = {layer.source: layer for layer in plan.layers}
    blocks = [walk.through(index, by_source.get(index)) for index in range(len(teacher.blocks))]
    kept = {
        str(position): block for position, block in enumerate(block for block in blocks if block is not None)
    }
    heads, remarks = walk.heads()
    return {**walk.start, "blocks": kept, **heads}, remarks


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
        self, teacher: ViT, params: Params, to_narrow: Array | None, images: Array, how: Repair
    ) -> None:
        self._model, self._params, self._how = teacher, params, how
        self._narrow, self.start = teacher, params  # the student before its inner sizes are cut
        self._teacher = self._student = streams.embed(teacher, params, images, how.batch)
        self._to_narrow = None if to_narrow is None else to_narrow.astype(np.float32)
        self._cut = self._to_narrow is not None  # whether anything so far differs from the teacher
        if to_narrow is not None:
            self._narrow, self.start = width.narrow(teacher, params, to_narrow)
            self._student = self._teacher @ self._to_narrow

    def through(self, index: int, layer: Layer | None) -> Params | None:
        """The repaired block that `layer` keeps of the teacher's block `index`, or None where it keeps none."""
        original, block = self._params["blocks"][str(index)], self._model.blocks[index]
        left = layer.block if layer else Block(0, 0, 0, 0)
        if not self._cut and left == block:
            self._advance_together(original, block)
            return original
        whole = self.start["blocks"][str(index)]
        if left.num_heads:
            whole = self._reread("norm1", whole, original)
        if block.num_heads:
            self._teacher = self._add(streams.attention_branch, self._model, block, original, self._teacher)
        self._cut = self._cut or dataclasses.replace(left, mlp_dim=block.mlp_dim) != block
        student = select(whole, layer) if layer else {}
        if layer and left.num_heads:
            student = self._attention(student, whole, layer, block) if self._cut else student
            self._student = self._add(streams.attention_branch, self._narrow, left, student, self._student)
        self._cut = True  # if the attention is whole, then the MLP was cut
        if layer and left.mlp_dim:
            student |= select(self._reread("norm2", whole, original), dataclasses.replace(layer, heads=()))
        if block.mlp_dim:
            self._teacher = self._add(streams.mlp_branch, self._model, block, original, self._teacher)
        if left.mlp_dim:
            student = self._mlp(student, left)
            self._student = self._add(streams.mlp_branch, self._narrow, left, student, self._student)
        return student if layer else None

    def _advance_together(self, params: Params, block: Block) -> None:
        for exists, branch in (
            (block.num_heads, streams.attention_branch),
            (block.mlp_dim, streams.mlp_branch),
        ):
            if exists:
                self._teacher = self._add(branch, self._model, block, params, self._teacher)
        self._student = self._teacher

    def _add(
        self, branch: streams.BranchOf, model: ViT, block: Block, params: Params, stream: Array
    ) -> Array:
        return streams.add_branch(branch(model, block), params, stream, self._how.batch)

    def _reread(self, norm: str, block: Params, original: Params) -> Params:
        """The student's `block` reading of its own stream what best tells the teacher's input of the same branch."""
        if self._to_narrow is None or not self._how.fit:
            return block
        fit = Moments()
        for rows in streams.batches(len(self._student), self._how.batch):
            read = streams.normed(block[norm], self._narrow.norm_eps, self._student[rows])
            fit.add(read, streams.normed(original[norm], self._model.norm_eps, self._teacher[rows]))
        fit.require_enough("the stream")
        # Linear in its targets: one fit serves every layer that reads this norm.
        return width.reread_branch(block, original, norm, *fit.ridge(_READER_DAMPING))

    def _lacking(self, rows: slice) -> jax.Array:
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
        fit, branch = Moments(), streams.attention_branch(self._narrow, left)
        for rows in streams.batches(len(self._student), self._how.batch):
            outputs = branch(params, self._student[rows])[1]["heads"]
            fit.add(outputs.reshape(*outputs.shape[:2], -1), self._lacking(rows))
        fit.require_enough("the attention output")
        kernel, bias = fit.ridge(self._how.ridge)
        out = {"kernel": kernel.reshape(left.num_heads, left.v_dim, -1), "bias": bias}
        return {**params, "attention": {**attention, "out": out}}

    def _mlp(self, params: Params, left: Block) -> Params:
        """The second dense layer fitted to the sequential target on the neurons that stay."""
        if not self._how.fit:
            return params
        fit, branch = Moments(), streams.mlp_branch(self._narrow, left)
        for rows in streams.batches(len(self._student), self._how.batch):
            hidden = branch(params, self._student[rows])[1]["hidden"]
            fit.add(hidden, self._lacking(rows))
        fit.require_enough("the MLP")
        kernel, bias = fit.ridge(self._how.ridge)
        return {**params, "mlp": {**params["mlp"], "fc2": {"kernel": kernel, "bias": bias}}}

    def heads(self) -> tuple[Params, list[str]]:
        """Every head fitted to the teacher's logits on the student's features; kept as it is while nothing was cut."""
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
            fitted[name] = {"kernel": kernel, "bias": bias}
        return fitted, []
