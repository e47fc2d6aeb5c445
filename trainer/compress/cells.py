"""The cells of a hybrid's stem for a set of images, carried through it one bottleneck unit at a time, as `streams` carries tokens.

Shapes: B batch, H W pixels or cells, C channels, T tokens, D width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trainer.compress.moments import Array
from trainer.compress.streams import in_batches
from trainer.description import Stem, ViT, without_stem
from trainer.models.build import Params, bind, bind_unit
from trainer.models.stem import Taps

Place = tuple[int, int]  # stage, and unit in it
Unit = Callable[[Params, Any], tuple[jax.Array, Taps]]  # the cells may lie on the host or on the device


def groups(stem: Stem | None) -> tuple[int, ...]:
    """As `Stem.groups_by_unit`; none without a stem."""
    return stem.groups_by_unit if stem else ()


def unit_params(params: Params, place: Place) -> Params:
    """The parameters of one unit, among those of a model."""
    own: Params = params["stem"]["stages"][str(place[0])][str(place[1])]
    return own


def kernel(stem: Stem, place: Place, params: Params, name: str) -> Array:
    """The kernel (H, W, I, O) that the unit's convolution `name` meets cells with: standardised, where the stem does so."""
    return np.asarray(getattr(bind_unit(stem, place, params), name).used_kernel())


@functools.lru_cache(maxsize=128)
def unit(stem: Stem, place: Place) -> Unit:
    """(the unit's parameters, cells (B, H, W, C)) → (cells after it, taps), compiled once per shape."""
    return jax.jit(lambda params, x: bind_unit(stem, place, params)(x))


def advance(stem: Stem, at: Place, params: Params, cells: Array, size: int) -> Array:
    """The cells after the unit `at`, whose parameters are `params`."""
    run = unit(stem, at)
    return in_batches(lambda own, x: run(own, x)[0], params, cells, size)


def begin(model: ViT, params: Params, images: Array, size: int) -> Array:
    """Normalised images (images, H, W, C) → the cells before the first unit."""
    bare = dataclasses.replace(model, blocks=())
    return in_batches(_beginning(bare), {**params, "blocks": {}}, images, size)


@functools.lru_cache(maxsize=32)
def _beginning(model: ViT) -> Callable[[Params, Any], jax.Array]:
    def run(params: Params, images: Any) -> jax.Array:
        stem = bind(model, params).stem
        assert stem is not None  # only models with a stem come here
        return stem.begin(images)

    return jax.jit(run)


def place(model: ViT, params: Params, cells: Array, size: int) -> Array:
    """The cells after the last unit → the stream (images, T, D) before the first block."""
    bare = dataclasses.replace(without_stem(model), blocks=())
    held = {name: value for name, value in params.items() if name != "stem"}
    return in_batches(_placing(bare), {**held, "blocks": {}}, cells, size)


@functools.lru_cache(maxsize=32)
def _placing(model: ViT) -> Callable[[Params, Any], jax.Array]:
    return jax.jit(lambda params, cells: bind(model, params).place(cells))
