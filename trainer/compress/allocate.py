"""From scores and a budget to plans. Pure arithmetic on the host; what a plan is really worth is measured by `search`.

Two ways to spend a budget: `greedy` removes, unit by unit, whatever loses least score per cost saved; `uniform` keeps the same
fraction of everything in every layer. Both only ever make a plan smaller, so size falls monotonically with the budget.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from serving.command import UserError
from trainer.compress.plan import Layer, Plan, identity, keep_all
from trainer.compress.scores import LayerScores, Scores
from trainer.description import Block, ViT

Cost = Callable[[ViT], int]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Sizes are multiples of these, because runtimes are slow on odd ones."""

    mlp: int
    head_dim: int


def least_block(block: Block, rounding: Rounding) -> Block:
    """The smallest that cutting may leave of a block."""
    dims = (min(rounding.head_dim, block.qk_dim), min(rounding.head_dim, block.v_dim))
    return Block(min(1, block.num_heads), *dims, min(rounding.mlp, block.mlp_dim))


def best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """The indices of the `count` largest scores, in ascending order; of equals the first."""
    order = np.argsort(-np.asarray(scores), kind="stable")[:count]
    return tuple(int(index) for index in np.sort(order))


def greedy(
    teacher: ViT, layers: Plan, scores: Scores, cost: Cost, budget: int, rounding: Rounding
) -> Plan | None:
    """Removes from `layers` whatever loses least per cost, until `cost` is within `budget`; None if that cannot be."""
    plan = layers
    spent = cost(plan.shape_of(teacher))
    while spent > budget:
        choices = []
        for position, layer in enumerate(plan.layers):
            for smaller, loss in _moves(
                layer, teacher.blocks[layer.source], scores[str(layer.source)], rounding
            ):
                layers_left = (*plan.layers[:position], smaller, *plan.layers[position + 1 :])
                trial = dataclasses.replace(plan, layers=layers_left)
                saved = spent - cost(trial.shape_of(teacher))
                if saved > 0:
                    choices.append((loss / saved, position, trial))
        if not choices:
            return None
        _, _, plan = min(choices, key=lambda choice: choice[:2])
        spent = cost(plan.shape_of(teacher))
    return plan


def _moves(
    layer: Layer, block: Block, scores: LayerScores, rounding: Rounding
) -> Iterator[tuple[Layer, float]]:
    """The layers one step smaller than `layer`, each with the score that the step gives up."""
    least = least_block(block, rounding)
    if len(layer.neurons) > least.mlp_dim:
        kept = _down(len(layer.neurons), rounding.mlp, least.mlp_dim)
        chosen = _narrow(scores["mlp"], layer.neurons, kept)
        lost = sum(float(scores["mlp"][neuron]) for neuron in set(layer.neurons) - set(chosen))
        yield dataclasses.replace(layer, neurons=chosen), lost
    if layer.heads:
        yield from _attention_moves(layer, least, scores, rounding)


def _attention_moves(
    layer: Layer, least: Block, scores: LayerScores, rounding: Rounding
) -> Iterator[tuple[Layer, float]]:
    heads = np.asarray(layer.heads)
    if len(heads) > 1:
        chosen = _narrow(scores["heads"], layer.heads, len(heads) - 1)
        yield (
            dataclasses.replace(layer, heads=chosen),
            float(sum(scores["heads"][head] for head in set(layer.heads) - set(chosen))),
        )
    if layer.qk_dim > least.qk_dim:
        dim = _down(layer.qk_dim, rounding.head_dim, least.qk_dim)
        yield (
            dataclasses.replace(layer, qk_dim=dim),
            float(scores["query_key"][heads, dim : layer.qk_dim].sum()),
        )
    if layer.v_dim > least.v_dim:
        dim = _down(layer.v_dim, rounding.head_dim, least.v_dim)
        yield dataclasses.replace(layer, v_dim=dim), float(scores["value"][heads, dim : layer.v_dim].sum())


def _down(size: int, multiple: int, least: int) -> int:
    return max((size - 1) // multiple * multiple, least)


def _narrow(scores: np.ndarray, kept: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(kept[index] for index in best(np.asarray(scores)[list(kept)], count))


def uniform(
    teacher: ViT, layers: Plan, scores: Scores, cost: Cost, budget: int, rounding: Rounding
) -> Plan | None:
    """Keeps all heads and one fraction of neurons and dims everywhere: the largest that is within `budget`, or None."""
    for percent in range(100, 0, -1):
        shrunk = tuple(_shrunk(layer, teacher, scores, percent / 100, rounding) for layer in layers.layers)
        plan = dataclasses.replace(layers, layers=shrunk)
        if cost(plan.shape_of(teacher)) <= budget:
            return plan
    return None


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


def smallest(teacher: ViT, rounding: Rounding) -> list[ViT]:
    """The smallest models that cutting may leave: the least of each block, alone."""
    return [dataclasses.replace(teacher, blocks=(least_block(block, rounding),)) for block in teacher.blocks]


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
