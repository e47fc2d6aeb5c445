"""What cutting may leave, and plans that need no search: all layers alike, or a stated shape. Pure arithmetic on the host."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from serving.command import UserError
from trainer.compress.cells import groups
from trainer.compress.plan import Layer, Plan, Unit, identity, keep_all, narrowed
from trainer.compress.scores import Scores
from trainer.description import Block, ViT, with_groups
from trainer.models.stem import gates_name

# Groups of a stem's inner channels go in fours: with two channels or more in each, channels stay multiples of 8.
GROUPS_STEP = 4
LEAST_WIDTH = 2  # of one channel LayerNorm leaves nothing
Cost = Callable[[ViT], int]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Sizes are multiples of these, because runtimes are slow on odd ones."""

    mlp: int
    head_dim: int
    width: int


def least_block(block: Block, rounding: Rounding) -> Block:
    """The smallest that cutting may leave of a block."""
    dims = (min(rounding.head_dim, block.qk_dim), min(rounding.head_dim, block.v_dim))
    return Block(min(1, block.num_heads), *dims, min(rounding.mlp, block.mlp_dim))


def best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """The indices of the `count` largest scores, in ascending order; of equals the first."""
    order = np.argsort(-np.asarray(scores), kind="stable")[:count]
    return tuple(int(index) for index in np.sort(order))


def uniform(
    teacher: ViT, layers: Plan, scores: Scores, cost: Cost, budget: int, rounding: Rounding
) -> Plan | None:
    """Keeps all heads and one fraction of neurons and dims everywhere: the largest that is within `budget`, or None."""
    for percent in range(100, 0, -1):
        plan = evenly(teacher, layers, scores, percent, rounding)
        if cost(plan.shape_of(teacher)) <= budget:
            return plan
    return None


def evenly(teacher: ViT, layers: Plan, scores: Scores, percent: int, rounding: Rounding) -> Plan:
    """Keeps all heads, and `percent` of neurons, dims and a stem's channels everywhere, but never less than `rounding` leaves."""
    shrunk = tuple(_shrunk(layer, teacher, scores, percent / 100, rounding) for layer in layers.layers)
    left = [
        has
        if percent == 100
        else min(max(has * percent // 100 // GROUPS_STEP * GROUPS_STEP, GROUPS_STEP), has)
        for has in groups(teacher.stem)
    ]
    return dataclasses.replace(layers, layers=shrunk, stem=units_of(teacher, scores, left))


def units_of(teacher: ViT, scores: Scores, left: Sequence[int]) -> tuple[Unit, ...]:
    """The best groups of every unit of the stem, so many each; none named where all stay."""
    if tuple(left) == groups(teacher.stem):
        return ()
    own = [scores[gates_name(unit)] for unit in range(len(left))]
    return tuple(
        Unit(*(best(score[name], count) for name in ("conv1", "conv2"))) for score, count in zip(own, left)
    )


def _shrunk(layer: Layer, teacher: ViT, scores: Scores, fraction: float, rounding: Rounding) -> Layer:
    block, own = teacher.blocks[layer.source], scores[str(layer.source)]
    least = least_block(block, rounding)

    def size(full: int, multiple: int, smallest: int) -> int:
        return full if fraction == 1 else max(int(full * fraction) // multiple * multiple, smallest)

    neurons = size(block.mlp_dim, rounding.mlp, least.mlp_dim)
    return Layer(
        layer.source,
        layer.heads,
        size(block.qk_dim, rounding.head_dim, least.qk_dim),
        size(block.v_dim, rounding.head_dim, least.v_dim),
        best(own["mlp"], neurons) if block.mlp_dim else (),
    )


def widths(teacher: ViT, rounding: Rounding) -> list[int]:
    """The widths of the residual stream that cutting may leave, the least first; without a head the stream is the answer."""
    if not teacher.num_classes:
        return [teacher.width]
    multiples = range(rounding.width, teacher.width, rounding.width)
    return sorted({*(width for width in multiples if width >= LEAST_WIDTH), teacher.width})


def smallest(teacher: ViT, rounding: Rounding) -> list[ViT]:
    """The smallest models that cutting may leave: the least branch of each block, alone, in the narrowest stream."""
    narrowest = narrowed(teacher, widths(teacher, rounding)[0])
    narrowest = with_groups(narrowest, [min(GROUPS_STEP, has) for has in groups(teacher.stem)])
    branches = (branch for block in teacher.blocks for branch in _branches(least_block(block, rounding)))
    return [dataclasses.replace(narrowest, blocks=(branch,)) for branch in branches]


def _branches(block: Block) -> list[Block]:
    """The block's attention and its MLP, each as a block of its own."""
    alone = (dataclasses.replace(block, mlp_dim=0), Block(0, 0, 0, block.mlp_dim))
    return [branch for branch in alone if branch.num_heads or branch.mlp_dim]


def stated(teacher: ViT, scores: Scores, dropped: set[int], num_heads: int, mlp_dim: int) -> Plan:
    """The plan of a stated shape: `num_heads` heads and `mlp_dim` neurons (0 keeps all) in every layer not `dropped`.

    Raises:
      UserError: when a layer of the teacher has fewer than that.
    """
    layers = []
    for layer in identity(teacher).layers:
        if layer.source in dropped:
            continue
        block, own = teacher.blocks[layer.source], scores[str(layer.source)]
        for name, asked, has in (
            ("num_heads", num_heads, block.num_heads),
            ("mlp_dim", mlp_dim, block.mlp_dim),
        ):
            if asked > has:
                raise UserError(
                    f"shape.{name}={asked} is above the teacher's {has} in layer {layer.source}; cutting only makes smaller"
                )
        heads = best(own["heads"], num_heads) if num_heads else layer.heads
        neurons = best(own["mlp"], mlp_dim) if mlp_dim else layer.neurons
        layers.append(dataclasses.replace(keep_all(layer.source, block), heads=heads, neurons=neurons))
    return Plan(tuple(layers))
