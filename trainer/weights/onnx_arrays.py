"""Our arrays out of the ONNX file that our exporter wrote: what it joined, scaled and folded, taken apart again.

The answers stay the same, not every array: the table of positions also holds the bias of the patches and the tokens in front, so
these come back as zeros; kernels of a stem come back standardised, which standardising again changes by their epsilon (1e-5).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from serving.command import UserError
from trainer.description import Mixer, ViT
from trainer.weights.adapt import Arrays, shapes_of
from trainer.weights.forms import Array, Shape

_PROJECTIONS = ("query", "key", "value")
_FOLDED = {"cls", "dist", "patch/bias"}


def arrays_of(path: Path, model: ViT | Mixer) -> Arrays:
    """The parameters of `model` in the file at `path`, by our names.

    Raises:
      UserError: when the file lacks one of them.
    """
    weights = {one.name: one for one in onnx.load(path).graph.initializer}

    def stored(name: str) -> Array:
        if name not in weights:
            raise UserError(
                f"{path}: array {name} is missing; take the weights of the checkpoint that it was made of"
            )
        return numpy_helper.to_array(weights[name])

    arrays = {}
    for name, shape in shapes_of(model).items():
        if name in _FOLDED and name not in weights:
            arrays[name] = np.zeros(shape, np.float32)
        else:
            arrays[name] = np.ascontiguousarray(_array(name, shape, model, stored), np.float32)
    return arrays


def _array(name: str, shape: Shape, model: ViT | Mixer, stored: Callable[[str], Array]) -> Array:
    module, _, leaf = name.rpartition("/")
    parent, _, part = module.rpartition("/")
    if part in _PROJECTIONS:
        return _projection(stored(f"{parent}/qkv/{leaf}"), part, leaf, name, model).reshape(shape)
    if name.startswith("stem/") and leaf == "kernel":
        return stored(name).transpose(2, 3, 1, 0)
    if isinstance(model, ViT) and model.distilled and module in ("head", "head_dist"):
        return _half(stored(f"head/{leaf}"), module, leaf, model.width)
    return stored(name).reshape(shape)


def _projection(joined: Array, part: str, leaf: str, name: str, model: ViT | Mixer) -> Array:
    """One of query, key and value, which stand side by side; the attention scale is in the query."""
    assert isinstance(model, ViT)
    block = model.blocks[int(name.split("/")[1])]
    dims = [block.num_heads * dim for dim in (block.qk_dim, block.qk_dim, block.v_dim)]
    index = _PROJECTIONS.index(part)
    own = joined[..., sum(dims[:index]) : sum(dims[: index + 1])]
    return own * np.float32(block.qk_dim**0.5) if part == "query" else own


def _half(joined: Array, head: str, leaf: str, width: int) -> Array:
    """One of DeiT's two heads, whose halved kernels stand on top of each other, and whose biases were averaged."""
    if leaf == "bias":
        return joined
    return 2 * (joined[:width] if head == "head" else joined[width:])
