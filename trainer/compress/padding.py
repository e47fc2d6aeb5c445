"""A cut block at the shapes of the uncut one, with zeros for what is gone: it computes the same, and nothing is compiled for it.

Every cut that a search tries has sizes of its own in every layer; compiling for each took longer than running it.
"""

import dataclasses

import numpy as np

from trainer.compress.moments import Array
from trainer.compress.plan import Plan
from trainer.description import Block, Stem, ViT, unit_convolutions
from trainer.models.build import Params

_NOTHING = Block(0, 0, 0, 0)


def padded(params: Params, left: Block, full: Block) -> Params:
    """The parameters `params` of a block of sizes `left` as those of a block of sizes `full`."""
    new = dict(params)
    if left.num_heads:
        new["attention"] = _attention(params["attention"], left, full)
    if left.mlp_dim:
        fc1, fc2 = params["mlp"]["fc1"], params["mlp"]["fc2"]
        neurons = full.mlp_dim
        new["mlp"] = {
            "fc1": {name: _grown(value, {-1: neurons}) for name, value in fc1.items()},
            "fc2": {"kernel": _grown(fc2["kernel"], {0: neurons}), "bias": fc2["bias"]},
        }
    return new


def padded_model(teacher: ViT, plan: Plan, params: Params) -> tuple[ViT, Params]:
    """The cut model of `plan` with every branch that is left at the teacher's sizes: the same function, as compiled before."""
    cut, blocks = plan.shape_of(teacher), []
    new: Params = {}
    for place, (layer, left) in enumerate(zip(plan.layers, cut.blocks, strict=True)):
        full = teacher.blocks[layer.source]
        new[str(place)] = padded(params["blocks"][str(place)], left, full)
        attention = full if left.num_heads else _NOTHING
        neurons = full.mlp_dim if left.mlp_dim else 0
        blocks.append(dataclasses.replace(attention, mlp_dim=neurons, merge=left.merge))
    grown = {**params, "blocks": new}
    if plan.stem and teacher.stem and cut.stem:
        cut = dataclasses.replace(cut, stem=plain(teacher.stem))
        grown["stem"] = _padded_stem(teacher.stem, params["stem"])
    return dataclasses.replace(cut, blocks=tuple(blocks)), grown


def plain(stem: Stem) -> Stem:
    """The stem with all of its channels, whose kernels are used as they are."""
    return dataclasses.replace(stem, groups=stem.groups_by_unit)


def padded_unit(stem: Stem, place: tuple[int, int], params: Params) -> Params:
    """A cut unit with as many channels as that of `stem` at `place`: whole groups of zeros, which their norm leaves alone."""
    inner = unit_convolutions(stem, *place)["conv2"].outputs
    new = dict(params)
    for name, axes in (("conv1", (-1,)), ("conv2", (-2, -1)), ("conv3", (-2,))):
        new[name] = {"kernel": _grown(params[name]["kernel"], dict.fromkeys(axes, inner))}
    for name in ("conv1_norm", "conv2_norm"):
        new[name] = {part: _grown(value, {-1: inner}) for part, value in params[name].items()}
    return new


def _padded_stem(stem: Stem, params: Params) -> Params:
    stages: Params = {}
    for stage, unit in stem.places:
        own = params["stages"][str(stage)][str(unit)]
        stages.setdefault(str(stage), {})[str(unit)] = padded_unit(stem, (stage, unit), own)
    return {**params, "stages": stages}


def kept_heads(left: Block, full: Block) -> Array:
    """Where the dims of the heads of `left` are among all dims of all heads of `full`, (N', V') flattened."""
    places = np.arange(full.num_heads * full.v_dim).reshape(full.num_heads, full.v_dim)
    return places[: left.num_heads, : left.v_dim].ravel()


def _attention(params: Params, left: Block, full: Block) -> Params:
    # Logits are divided by the root of the dims a head has: those of `full` here.
    scale = np.float32(np.sqrt(full.qk_dim / left.qk_dim)) if left.qk_dim else np.float32(1)
    sizes = {"query": full.qk_dim, "key": full.qk_dim, "value": full.v_dim}
    new: Params = {
        name: {part: _grown(value, {-1: dims, -2: full.num_heads}) for part, value in params[name].items()}
        for name, dims in sizes.items()
    }
    new["query"] = {part: value * scale for part, value in new["query"].items()}
    kernel = _grown(params["out"]["kernel"], {0: full.num_heads, 1: full.v_dim})
    return {**params, **new, "out": {"kernel": kernel, "bias": params["out"]["bias"]}}


def _grown(value: Array, sizes: dict[int, int]) -> Array:
    """`value` with zeros behind it up to `sizes` by axis."""
    value = np.asarray(value)
    grow = [(0, 0)] * value.ndim
    for axis, size in sizes.items():
        grow[axis] = (0, size - value.shape[axis])
    return np.pad(value, grow)
