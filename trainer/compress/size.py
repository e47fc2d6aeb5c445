"""The size of a model's exported file, from its description.

The weights are counted; names, nodes and shapes depend on the structure alone (which block has which branch), so that they are
read off the file of a twin of the same structure with the least sizes.
"""

import dataclasses
import functools

from trainer.compress.latency import graph_bytes
from trainer.description import Block, ViT, param_count

_MIB = 2**20
# Bytes for each output of a product whose weight is int8: a scale, and in int8 a zero point.
_BESIDE = {"int8": 5, "int8_weights": 4}


def file_mib(model: ViT, precision: str) -> float:
    """MiB of the file that `trainer.export` would write, within 1 %."""
    twin = dataclasses.replace(model, width=8, norm_eps=1e-6, blocks=tuple(map(_least, model.blocks)))
    return (_weight_bytes(model, precision) + _beside_weights(twin, precision)) / _MIB


@functools.lru_cache(maxsize=128)
def _beside_weights(twin: ViT, precision: str) -> int:
    return len(graph_bytes(twin, precision)) - _weight_bytes(twin, precision)


def _least(block: Block) -> Block:
    heads = min(block.num_heads, 1)
    return Block(heads, heads, heads, min(block.mlp_dim, 1), block.merge)


def _weight_bytes(model: ViT, precision: str) -> int:
    # The export adds the patch's bias and the tokens in front to the position table, which is one array then.
    folded = model.width * (1 + model.num_prefix)
    size = 4 * (param_count(model) - folded)
    if precision in _BESIDE:
        more = _BESIDE[precision]
        size -= sum(3 * inputs * outputs - more * outputs for inputs, outputs in _products(model))
    return size


def _products(model: ViT) -> list[tuple[int, int]]:
    """(inputs, outputs) of every weight that an export with int8 weights stores as int8."""
    d = model.width
    shapes = [(model.patch_size**2 * model.stem_channels, d)]
    for block in model.blocks:
        if block.num_heads:
            shapes.append((d, block.num_heads * (2 * block.qk_dim + block.v_dim)))
            shapes.append((block.num_heads * block.v_dim, d))
        if block.mlp_dim:
            shapes += [(d, block.mlp_dim), (block.mlp_dim, d)]
    return shapes
