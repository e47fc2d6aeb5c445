"""Fewer channels in the residual stream by rotation, leaving a plain LayerNorm ViT: no matrices stay between the blocks.

Notes on compression, "repair", 4. SliceGPT (arXiv:2401.15024) rotates streams that RMSNorm reads; here rotations keep tokens
centred, so that LayerNorm commutes with them. The first w - 1 principal directions of what LayerNorms read are embedded in the
zero-sum vectors of w channels. Writers (patches, tokens, positions, second dense layers, outputs) end in that map, readers
(queries, keys, values, first dense layers, heads) begin with its transpose and take over the scale and bias of their LayerNorm.
At w = D nothing changes but the basis.

Shapes: B batch, T tokens, D width of the teacher, w of the student.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from serving.command import UserError
from trainer.compress import streams
from trainer.compress.allocate import LEAST_WIDTH
from trainer.compress.moments import Array, Moments
from trainer.compress.plan import narrowed
from trainer.description import ViT
from trainer.models.build import Params
from trainer.models.vit import head_names

FILE = "projection.npz"  # beside a narrower model: "projection" (D, w)
_EVENLY = 0.3  # of the mean importance is added to all directions: also what matters little keeps its size in LayerNorm
_LEAST_ENERGY = 1e-6  # of the most in any direction: less is rounding of float32, and comes last
_BEHIND = {"norm1": "attention", "norm2": "mlp"}  # a norm: the branch that reads it
_WRITERS = {"attention": "out", "mlp": "fc2"}


def check_width(teacher: ViT, width: int) -> None:
    """Refuses a width that the teacher's stream cannot be rotated into.

    Raises:
      UserError: naming the bounds, or the reason.
    """
    if not LEAST_WIDTH <= width <= teacher.width:
        raise UserError(
            f"width {width} is impossible; the teacher's stream can keep {LEAST_WIDTH} to {teacher.width} channels"
        )
    if width < teacher.width and not teacher.num_classes:
        raise UserError("a model without a head gives out its stream; the width of that cannot be cut")


def principal_directions(teacher: ViT, stream: Iterable[Array], fisher: Array, size: int) -> Array:
    """Orthonormal zero-sum directions (D, D - 1) by what is lost without them, most first.

    `stream` is the teacher's on calibration images, before the first branch and after each (`streams.walk`), `fisher` (D, D)
    what its answer depends on (`stream_fisher`). With S the second moment of the centred, scaled tokens that LayerNorms read
    and M that of the gradients, the first k directions span what k numbers should be read of a token x so that M^½ x is told
    best: reduced-rank regression (Izenman 1975, eq. 2.4). Every LayerNorm counts the same, the last one with those tokens that
    the heads read.
    """
    centred, moment = isometry(teacher.width), np.zeros((teacher.width, teacher.width))
    branches = sum((block.num_heads > 0) + (block.mlp_dim > 0) for block in teacher.blocks)
    for read, tokens in enumerate(stream):
        last = read == branches
        moment += _second_moment(teacher, tokens[:, : teacher.num_prefix or None] if last else tokens, size)
    values, vectors = np.linalg.eigh(centred.T @ moment @ centred)
    taken = values > _LEAST_ENERGY * values[-1]
    deviation, own = np.sqrt(values[taken]), vectors[:, taken]
    matters = own.T @ (centred.T @ fisher @ centred) @ own
    matters += _EVENLY * np.trace(matters) / len(matters) * np.eye(len(matters))
    told = np.linalg.eigh(deviation[:, None] * matters * deviation)[1][:, ::-1]
    read_first = own @ np.linalg.qr(told / deviation[:, None])[0]
    return np.asarray(centred @ np.hstack([read_first, vectors[:, ~taken]]))


def _second_moment(teacher: ViT, stream: Array, size: int) -> Array:
    plain, moments = {"scale": np.float32(1), "bias": np.float32(0)}, Moments()
    for rows in streams.batches(len(stream), size):
        moments.add(streams.normed(plain, teacher.norm_eps, stream[rows]))
    covariance, mean = moments.covariance()
    return covariance + np.outer(mean, mean)


def isometry(width: int) -> Array:
    """Helmert's orthonormal columns (w, w - 1), each of sum zero."""
    columns = np.triu(np.ones((width, width - 1)))
    columns[np.arange(1, width), np.arange(width - 1)] = -np.arange(1, width)
    return columns / np.linalg.norm(columns, axis=0)


def narrow(teacher: ViT, params: Params, to_narrow: Array) -> tuple[ViT, Params]:
    """Model and parameters on the stream x @ `to_narrow` (D, w)."""
    width = to_narrow.shape[1]
    norm = plain_norm(teacher.width, width)
    blocks = {index: _narrow_block(block, to_narrow, norm) for index, block in params["blocks"].items()}
    written: Params = {name: params[name] @ to_narrow for name in ("pos", "cls", "dist") if name in params}
    heads: Params = {name: _reading(params[name], params["norm"], to_narrow) for name in head_names(teacher)}
    new: Params = {**written, "patch": _writing(params["patch"], to_narrow), **heads}
    return narrowed(teacher, width), {**params, **_float32(new), "norm": norm, "blocks": blocks}


def projection(directions: Array, width: int) -> Array:
    """The map (D, w) of the teacher's stream into `width` channels: onto the first directions, then into zero-sum vectors."""
    return np.asarray(directions[:, : width - 1] @ isometry(width).T)


def plain_norm(old_width: int, width: int) -> Params:
    """The LayerNorm of a rotated stream (w,): scaled so that directions that were dropped leave the others' size alone."""
    scale = np.full(width, np.sqrt(old_width / width), np.float32)
    return {"scale": scale, "bias": np.zeros(width, np.float32)}


def _narrow_block(block: Params, to_narrow: Array, norm: Params) -> Params:
    new: Params = {}
    for norm_name, branch in _BEHIND.items():
        if branch not in block:
            continue
        old, writer = block[branch], _WRITERS[branch]
        read = {name: _reading(old[name], block[norm_name], to_narrow) for name in streams.READERS[branch]}
        new[norm_name] = norm
        new[branch] = _float32({**read, writer: _writing(old[writer], to_narrow)})
    return new


def _writing(layer: Params, to_narrow: Array) -> Params:
    return {name: value @ to_narrow for name, value in layer.items()}


def _reading(layer: Params, norm: Params, to_narrow: Array) -> Params:
    return reread(layer, to_narrow.T * norm["scale"], np.asarray(norm["bias"]))


def reread(layer: Params, kernel: Array, bias: Array) -> Params:
    """The layer that says of y (w,) what `layer` says of y @ kernel + bias, (D,)."""
    old, offset = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    return {"kernel": np.tensordot(kernel, old, 1), "bias": np.tensordot(bias, old, 1) + offset}


def reread_branch(block: Params, original: Params, norm: str, kernel: Array, bias: Array) -> Params:
    """`block` whose readers behind `norm` say what the readers of `original` say of y @ kernel + bias."""
    branch = _BEHIND[norm]
    read = {name: reread(original[branch][name], kernel, bias) for name in streams.READERS[branch]}
    return {**block, branch: {**block[branch], **_float32(read)}}


def _float32(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _float32(value) for name, value in values.items()}
    return np.asarray(values, np.float32)
