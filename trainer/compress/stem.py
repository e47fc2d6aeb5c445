"""Fewer channels inside the bottleneck units of a hybrid's stem, repaired in closed form.

GroupNorm's groups of inner channels are cut whole, so that what is left is normalised as before. A standardised kernel whose
inputs are fewer would be standardised to another kernel, so kernels are folded first and used as they are from then on. In every
unit the convolutions behind a cut are fitted, without bias, to what the teacher's convolutions make: the second to those of its
outputs that stay, the third to all. At the end the patch embedding is fitted to the teacher's tokens. A unit is left untouched
while nothing was cut in or before it.

Shapes: B batch, H W cells, C channels, T tokens, w width of the student.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress import cells as cells_of
from trainer.compress import streams
from trainer.compress.cells import Place
from trainer.compress.moments import Array, Moments
from trainer.compress.padding import padded_unit, plain
from trainer.compress.plan import Unit
from trainer.description import Stem, ViT, unit_convolutions
from trainer.models.build import Params, bind, bind_unit

_PATCHES_BYTES = 2**27  # of what a convolution reads, spread out, at once


@dataclasses.dataclass(frozen=True)
class Cut:
    """The parameters of a cut stem, the cells (images, H, W, C) that it makes of the calibration images, and if they changed."""

    params: Params
    cells: Array
    changed: bool


def cut(
    teacher: ViT, params: Params, left: tuple[Unit, ...], images: Array, batch: int, ridge: float | None
) -> Cut | None:
    """The stem with what is `left` of its units, fitted to the teacher's with a damping of `ridge` (None slices alone).

    None where all of it stays. `images` are normalised calibration images (images, H, W, C).

    Raises:
      UserError: when there are too few images for a convolution.
    """
    if not left or not teacher.stem:
        return None
    stem, start = folded(teacher, params)
    model = dataclasses.replace(teacher, stem=stem)
    has = wanted = cells_of.begin(model, start, images, batch)
    stages: Params = {}
    for index, (place, unit) in enumerate(zip(stem.places, left, strict=True)):
        own = new = cells_of.unit_params(start, place)
        wanted_after = cells_of.advance(stem, place, own, wanted, batch)
        if has is wanted and len(unit.conv1) == cells_of.groups(stem)[index]:
            has = wanted_after
        else:
            new = cut_unit(stem, place, own, unit, (wanted, has), batch, ridge)
            has = cells_of.advance(stem, place, padded_unit(stem, place, new), has, batch)
        wanted = wanted_after
        stages.setdefault(str(place[0]), {})[str(place[1])] = new
    return Cut({**start["stem"], "stages": stages}, has, has is not wanted)


def folded(teacher: ViT, params: Params) -> tuple[Stem, Params]:
    """The teacher's stem with kernels that are used as they are, and all parameters with those: the same function."""
    stem = teacher.stem
    if stem is None:
        raise ValueError("a model without a stem has no kernels to fold")
    bare = bind(dataclasses.replace(teacher, blocks=()), {**params, "blocks": {}}).stem
    assert bare is not None  # as `stem`
    stages: Params = {}
    for place in stem.places:
        own = cells_of.unit_params(params, place)
        unit = bind_unit(stem, place, own)
        kernels = {
            name: {"kernel": np.asarray(getattr(unit, name).used_kernel())}
            for name in unit_convolutions(stem, *place)
        }
        stages.setdefault(str(place[0]), {})[str(place[1])] = {**own, **kernels}
    root = {"kernel": np.asarray(bare.root.used_kernel())}
    return plain(stem), {**params, "stem": {**params["stem"], "root": root, "stages": stages}}


def cut_unit(
    stem: Stem,
    place: Place,
    own: Params,
    left: Unit,
    before: tuple[Array, Array],
    batch: int,
    ridge: float | None,
) -> Params:
    """The parameters of a folded unit with what is `left` of it, fitted on the cells `before` it: the teacher's, the student's."""
    new = _sliced(stem, place, own, left)
    if ridge is None:
        return new
    outputs = _channels(stem, place, left.conv2)
    for name, inner, made, kept in (
        ("conv2", "inner1", "made2", outputs),
        ("conv3", "inner2", "made3", slice(None)),
    ):
        one = unit_convolutions(stem, *place)[name]
        read = len(_channels(stem, place, left.conv1))  # as many behind either of the first two
        run, wide, fit = cells_of.unit(stem, place), padded_unit(stem, place, new), Moments()
        bytes_each = 4 * one.kernel**2 * one.inputs * before[0].shape[1] * before[0].shape[2]
        for rows in streams.batches(len(before[0]), min(batch, max(1, _PATCHES_BYTES // bytes_each))):
            wanted, has = run(own, before[0][rows])[1], run(wide, before[1][rows])[1]
            fit.add(_spread(has[inner][..., :read], one.kernel, one.stride), wanted[made][..., kept])
        fit.require_enough(f"{name} of unit {place[1]} in stage {place[0]} of the stem")
        new[name] = {"kernel": _gathered(fit.linear(ridge), one.kernel)}
    return new


def refit_patch(
    model: ViT, params: Params, cells: Array, wanted: Array, batch: int, ridge: float
) -> tuple[Params, list[str]]:
    """The patch embedding that makes of `cells` what comes nearest to the stream `wanted` (images, T, w) before the first block.

    As it is, with a remark, where there are too few calibration images for it.
    """
    own: Params = params["patch"]
    positions = np.asarray(params["pos"])[:, model.num_prefix :]
    side, fit = model.patch_size, Moments()
    for rows in streams.batches(len(cells), batch):
        seen = jnp.asarray(cells[rows])[:, : model.grid[0] * side, : model.grid[1] * side]
        tokens = wanted[rows, model.num_prefix :] - positions
        fit.add(_spread(seen, side, side).reshape(*tokens.shape[:2], -1), jnp.asarray(tokens))
    if not fit.enough():
        return own, [f"the patch embedding behind the stem not fitted: {fit.rows} patches are too few"]
    kernel, bias = fit.ridge(ridge)
    return {"kernel": _gathered(kernel, side), "bias": bias}, []


def _channels(stem: Stem, place: Place, groups: tuple[int, ...]) -> Array:
    """The inner channels of the named groups of a unit."""
    index = stem.places.index(place)
    each = unit_convolutions(stem, *place)["conv2"].outputs // cells_of.groups(stem)[index]
    return np.concatenate([np.arange(group * each, (group + 1) * each) for group in groups])


def _sliced(stem: Stem, place: Place, own: Params, left: Unit) -> Params:
    first, second = _channels(stem, place, left.conv1), _channels(stem, place, left.conv2)
    kernels = {name: np.asarray(own[name]["kernel"]) for name in ("conv1", "conv2", "conv3")}
    return {
        **own,
        "conv1": {"kernel": kernels["conv1"][..., first]},
        "conv1_norm": {part: np.asarray(value)[first] for part, value in own["conv1_norm"].items()},
        "conv2": {"kernel": kernels["conv2"][:, :, first][..., second]},
        "conv2_norm": {part: np.asarray(value)[second] for part, value in own["conv2_norm"].items()},
        "conv3": {"kernel": kernels["conv3"][:, :, second]},
    }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _spread(x: jax.Array, side: int, stride: int) -> jax.Array:
    """What a convolution of `side` reads for each of its outputs: (B, H, W, C) → (B, H', W', C · side · side), padded as SAME."""
    return jax.lax.conv_general_dilated_patches(
        x, (side, side), (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _gathered(kernel: Array, side: int) -> Array:
    """The kernel (side, side, I, O) that does to cells what `kernel` (I · side · side, O) does to what `_spread` makes."""
    return np.ascontiguousarray(kernel.reshape(-1, side, side, kernel.shape[-1]).transpose(1, 2, 0, 3))
