"""A cutting plan: which layers, heads and neurons of the teacher stay, and how many dims each head keeps. Pure data.

A plan is made from scores (`allocate`), carried out by `repair`, and written beside the result as JSON.
"""

import dataclasses
from typing import Any

from trainer.description import Block, ViT


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
class Plan:
    """The layers that stay, from the input up."""

    layers: tuple[Layer, ...]

    def shape_of(self, teacher: ViT) -> ViT:
        """The description of the cut model."""
        return dataclasses.replace(teacher, blocks=tuple(layer.block for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


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
    return Plan(tuple(layer for layer in plan.layers if layer.source not in sources))
