"""A cutting plan: which layers, heads and neurons of the teacher stay, how many dims each head keeps, and how wide the stream is.

Pure data. A plan is made from scores (`allocate`), carried out by `repair`, and written beside the result as JSON.
"""

import dataclasses
from typing import Any

from trainer.description import Block, ViT, merging, with_groups

FILE = "plan.json"  # beside the model that it was carried out for


@dataclasses.dataclass(frozen=True)
class Layer:
    """What stays of the teacher's block `source`: head and neuron indices, and dims per head."""

    source: int
    heads: tuple[int, ...]
    qk_dim: int
    v_dim: int
    neurons: tuple[int, ...]

    @property
    def block(self) -> Block:
        """The shape of the block that is left."""
        dims = (self.qk_dim, self.v_dim) if self.heads else (0, 0)
        return Block(len(self.heads), *dims, len(self.neurons))


@dataclasses.dataclass(frozen=True)
class Unit:
    """What stays inside one unit of a hybrid's stem: as many groups of channels behind either of its first two convolutions."""

    conv1: tuple[int, ...]
    conv2: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layers that stay, from the input up, and the channels of the residual stream (0: as many as the teacher's).

    `merged` is how many pairs of tokens each of these layers merges; empty: as many as in the teacher. `stem` has every unit of
    the stem; empty: all of it stays.
    """

    layers: tuple[Layer, ...]
    width: int = 0
    merged: tuple[int, ...] = ()
    stem: tuple[Unit, ...] = ()

    def shape_of(self, teacher: ViT) -> ViT:
        """The description of the cut model."""
        blocks = tuple(layer.block for layer in self.layers)
        shape = dataclasses.replace(narrowed(teacher, self.width or teacher.width), blocks=blocks)
        if self.stem:
            shape = with_groups(shape, [len(unit.conv1) for unit in self.stem])
        inherited = (teacher.blocks[layer.source].merge if layer.heads else 0 for layer in self.layers)
        return merging(shape, self.merged or tuple(inherited))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def from_json(values: dict[str, Any]) -> Plan:
    """The inverse of `Plan.to_json`."""
    layers = [
        Layer(**{**layer, "heads": tuple(layer["heads"]), "neurons": tuple(layer["neurons"])})
        for layer in values["layers"]
    ]
    units = [Unit(tuple(unit["conv1"]), tuple(unit["conv2"])) for unit in values.get("stem", ())]
    return Plan(tuple(layers), values["width"], tuple(values.get("merged", ())), tuple(units))


def narrowed(teacher: ViT, width: int) -> ViT:
    """The teacher with a stream of `width` channels. LayerNorm's ε grows by as much as the mean square of a rotated token does."""
    return dataclasses.replace(teacher, width=width, norm_eps=teacher.norm_eps * (teacher.width / width))


def identity(teacher: ViT) -> Plan:
    """The plan that keeps everything."""
    return Plan(tuple(keep_all(index, block) for index, block in enumerate(teacher.blocks)))


def keep_all(source: int, block: Block) -> Layer:
    """The layer that keeps all of the teacher's block."""
    return Layer(
        source, tuple(range(block.num_heads)), block.qk_dim, block.v_dim, tuple(range(block.mlp_dim))
    )


def without_layers(plan: Plan, sources: set[int]) -> Plan:
    """`plan` without the blocks that came from `sources`."""
    places = [place for place, layer in enumerate(plan.layers) if layer.source not in sources]
    kept = tuple(plan.layers[place] for place in places)
    merged = tuple(plan.merged[place] for place in places) if plan.merged else ()
    return dataclasses.replace(plan, layers=kept, merged=merged)
