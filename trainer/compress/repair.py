"""Carries out a plan: cuts arrays for real and repairs what the cut broke, in closed form, walking teacher and student together.

Notes on compression, "repair by least squares", 1 to 3, 5 and 6. In every block the regressors are the student's own
activations and the target is what the student's residual stream lacks of the teacher's, so each fit also mends what earlier
blocks left (the sequential target). A branch is left untouched, bit for bit, while nothing was cut in or before it.

Shapes: B batch, T tokens, D width, N heads, V value dim, F mlp dim.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from trainer.compress import streams
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array, Moments
from trainer.compress.plan import Layer, Plan
from trainer.description import Block, ViT
from trainer.models.build import Params
from trainer.models.vit import head_names

_HEAD_DAMPING = 1e-3  # the head reads few, well-spread features: a tenth of the branches' damping is enough


@dataclasses.dataclass(frozen=True)
class Repair:
    """How to repair: ridge damping as a fraction of the mean variance, and images per batch."""

    ridge: float
    batch: int
    fit: bool = True  # False slices and truncates only: the state of the art to compare with


def cut(teacher: ViT, params: Params, plan: Plan, images: Array, how: Repair) -> tuple[Params, list[str]]:
    """The parameters of `plan.shape_of(teacher)`, and remarks on what could not be fitted.

    `images` are normalised calibration images (images, H, W, C); no label is used.

    Raises:
      UserError: when there are too few images for the sizes to be fitted.
    """
    walk = _Walk(teacher, params, images, how)
    by_source = {layer.source: layer for layer in plan.layers}
    blocks = [walk.through(index, by_source.get(index)) for index in range(len(teacher.blocks))]
    kept = {
        str(position): block for position, block in enumerate(block for block in blocks if block is not None)
    }
    heads, remarks = walk.heads()
    return {**params, "blocks": kept, **heads}, remarks


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

    def __init__(self, teacher: ViT, params: Params, images: Array, how: Repair) -> None:
        self._model, self._params, self._how = teacher, params, how
        self._teacher = self._student = streams.embed(teacher, params, images, how.batch)
        self._cut = False  # whether anything so far differs from the teacher

    def through(self, index: int, layer: Layer | None) -> Params | None:
        """The repaired block that `layer` keeps of the teacher's block `index`, or None where it keeps none."""
        original, block = self._params["blocks"][str(index)], self._model.blocks[index]
        left = layer.block if layer else Block(0, 0, 0, 0)
        if not self._cut and left == block:
            self._advance_together(original, block)
            return original
        student = select(original, layer) if layer else {}
        if block.num_heads:
            self._teacher = self._add(streams.attention_branch, block, original, self._teacher)
        self._cut = self._cut or dataclasses.replace(left, mlp_dim=block.mlp_dim) != block
        if layer and left.num_heads:
            student = self._attention(student, original, layer, block) if self._cut else student
            self._student = self._add(streams.attention_branch, left, student, self._student)
        self._cut = True  # if the attention is whole, then the MLP was cut
        if block.mlp_dim:
            self._teacher = self._add(streams.mlp_branch, block, original, self._teacher)
        if left.mlp_dim:
            student = self._mlp(student, left)
            self._student = self._add(streams.mlp_branch, left, student, self._student)
        return student if layer else None

    def _advance_together(self, params: Params, block: Block) -> None:
        for exists, branch in (
            (block.num_heads, streams.attention_branch),
            (block.mlp_dim, streams.mlp_branch),
        ):
            if exists:
                self._teacher = self._add(branch, block, params, self._teacher)
        self._student = self._teacher

    def _add(self, branch: streams.BranchOf, block: Block, params: Params, stream: Array) -> Array:
        return streams.add_branch(branch(self._model, block), params, stream, self._how.batch)

    def _attention(self, params: Params, original: Params, layer: Layer, block: Block) -> Params:
        """Fewer dims per head by whitened SVD, then the output projection fitted to the sequential target."""
        left = layer.block
        attention, heads = params["attention"], list(layer.heads)
        if left.qk_dim < block.qk_dim or left.v_dim < block.v_dim:
            # What the heads read is taken from the uncut block on the student's stream: one pass serves both truncations.
            norm, averaged = streams.attention_moments(
                self._model, block, original, self._student, self._how.batch
            )
            if left.qk_dim < block.qk_dim:
                attention = cut_query_key(attention, *norm.covariance(), left.qk_dim)
            if left.v_dim < block.v_dim:
                covariances, means = zip(*(averaged[head].covariance() for head in heads))
                attention = cut_value_output(attention, np.stack(covariances), np.stack(means), left.v_dim)
        params = {**params, "attention": attention}
        if not self._how.fit:
            return params
        fit, branch = Moments(), streams.attention_branch(self._model, left)
        for rows in streams.batches(len(self._student), self._how.batch):
            outputs = branch(params, self._student[rows])[1]["heads"]
            fit.add(
                outputs.reshape(*outputs.shape[:2], -1),
                jnp.asarray(self._teacher[rows] - self._student[rows]),
            )
        fit.require_enough("the attention output")
        kernel, bias = fit.ridge(self._how.ridge)
        out = {"kernel": kernel.reshape(left.num_heads, left.v_dim, -1), "bias": bias}
        return {**params, "attention": {**attention, "out": out}}

    def _mlp(self, params: Params, left: Block) -> Params:
        """The second dense layer fitted to the sequential target on the neurons that stay."""
        if not self._how.fit:
            return params
        fit, branch = Moments(), streams.mlp_branch(self._model, left)
        for rows in streams.batches(len(self._student), self._how.batch):
            hidden = branch(params, self._student[rows])[1]["hidden"]
            fit.add(hidden, jnp.asarray(self._teacher[rows] - self._student[rows]))
        fit.require_enough("the MLP")
        kernel, bias = fit.ridge(self._how.ridge)
        return {**params, "mlp": {**params["mlp"], "fc2": {"kernel": kernel, "bias": bias}}}

    def heads(self) -> tuple[Params, list[str]]:
        """Every head fitted to the teacher's logits on the student's features; kept as it is while nothing was cut."""
        heads: Params = {name: self._params[name] for name in head_names(self._model)}
        if not self._cut or not self._how.fit:
            return heads, []
        teacher, student = self._features(self._teacher), self._features(self._student)
        fitted: Params = {}
        for index, name in enumerate(heads):
            fit, said = Moments(), streams.said_by(heads[name], teacher[:, index])
            fit.add(jnp.asarray(student[:, index]), jnp.asarray(said))
            if not fit.enough():
                few = f"{fit.rows} images are too few for width {self._model.width}"
                return heads, [f"{name} not fitted: {few}"]
            kernel, bias = fit.ridge(_HEAD_DAMPING)
            fitted[name] = {"kernel": kernel, "bias": bias}
        return fitted, []

    def _features(self, stream: Array) -> Array:
        return streams.features(self._model, self._params, stream, self._how.batch)
