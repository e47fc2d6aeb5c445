"""From a description and a nested dict of arrays to a module that can be called, and back.

NNX objects never leave this file's callers: training, pruning, sharding and export see plain dicts with path names.
"""

import functools
from typing import Any, cast, overload

import jax
from flax import nnx

from serving.command import UserError
from trainer.description import Block, Mixer, Model, Stem, TextTower, TwoTowers, ViT
from trainer.models.encoder import EncoderBlock
from trainer.models.mixer import MlpMixer
from trainer.models.stem import Bottleneck
from trainer.models.text import TextEncoder
from trainer.models.towers import ImageTextPair
from trainer.models.vit import VisionTransformer

Params = dict[str, Any]  # nested; leaves are arrays
Module = VisionTransformer | MlpMixer | TextEncoder | ImageTextPair


class _Keys:
    """The keys of `nnx.Rngs(seed)` in their order, counted in Python.

    Its counter is an array: where that is traced, time goes with the square of a model's depth (16 s for the shapes of ViT-L_16).
    """

    def __init__(self, seed: int) -> None:
        self._key, self._used = jax.random.key(seed), 0

    def params(self) -> jax.Array:
        self._used += 1
        return jax.random.fold_in(self._key, self._used - 1)


def _create(model: Model, seed: int) -> Module:
    """The one place that knows which module a description is of."""
    rngs = cast(nnx.Rngs, _Keys(seed))
    match model:
        case ViT():
            return VisionTransformer(model, rngs)
        case Mixer():
            return MlpMixer(model, rngs)
        case TextTower():
            return TextEncoder(model, rngs)
        case TwoTowers():
            return ImageTextPair(model, rngs)


@functools.lru_cache(maxsize=32)
def _abstract(model: Model) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: _create(model, 0)))


def init_params(model: Model, seed: int) -> Params:
    """Fresh parameters: Xavier-uniform kernels, normal(0.02) positions, zero class token and head (arXiv:2010.11929, appendix B).

    Convolutions are LeCun-normal; text tables normal, at 0.02 (BERT) or 1 / √width.
    May be called inside `jax.jit`, so that a large model is born in its shards.
    """
    return nnx.to_pure_dict(nnx.state(_create(model, seed)))


def param_shapes(model: Model) -> Params:
    """The nested dict of `jax.ShapeDtypeStruct` that parameters of `model` must match."""
    return nnx.to_pure_dict(_abstract(model)[1])


@overload
def bind(model: ViT, params: Params) -> VisionTransformer: ...
@overload
def bind(model: Mixer, params: Params) -> MlpMixer: ...
@overload
def bind(model: TextTower, params: Params) -> TextEncoder: ...
@overload
def bind(model: TwoTowers, params: Params) -> ImageTextPair: ...
def bind(model: Model, params: Params) -> Module:
    """The module that `model` describes, holding `params`; cheap, and works under any JAX transform."""
    return _filled(*_abstract(model), params)


@functools.lru_cache(maxsize=128)
def _abstract_block(model: ViT, block: Block) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: EncoderBlock(model, block, nnx.Rngs(0))))


def bind_block(model: ViT, block: Block, params: Params) -> EncoderBlock:
    """One encoder block of `model`'s width, GELU and norm, holding `params` (a value of params["blocks"])."""
    return _filled(*_abstract_block(model, block), params)


@functools.lru_cache(maxsize=128)
def _abstract_unit(stem: Stem, place: tuple[int, int]) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Bottleneck(stem, *place, nnx.Rngs(0))))


def bind_unit(stem: Stem, place: tuple[int, int], params: Params) -> Bottleneck:
    """The bottleneck at `place` (stage, unit) of a stem, holding `params`."""
    return _filled(*_abstract_unit(stem, place), params)


def _filled(graph: nnx.GraphDef, state: nnx.State, params: Params) -> Any:
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def check_params(model: Model, params: Params, source: str) -> None:
    """Refuses arrays that do not fit `model`.

    Raises:
      UserError: naming the first missing, unknown or misshapen array of `source`.
    """
    expected = {path: leaf.shape for path, leaf in flatten(param_shapes(model)).items()}
    actual = {path: leaf.shape for path, leaf in flatten(params).items()}
    for path in sorted(expected.keys() | actual.keys()):
        if expected.get(path) != actual.get(path):
            raise UserError(
                f"{source}: array {path} has shape {actual.get(path, 'missing')}, "
                f"its model description asks for {expected.get(path, 'no such array')}"
            )


def flatten(params: Params) -> dict[str, Any]:
    """The same leaves under "/"-joined names."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: dict[str, Any]) -> Params:
    """The nested dict of "/"-joined names; the inverse of `flatten`."""
    params: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params
