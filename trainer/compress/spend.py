"""How a budget is spent best at one width: the sizes of every branch, by dynamic programming over what they cost and lose.

Costs must be sums over branches, as parameters, MACs and bytes are, and tables of timed branches. A branch may also vanish, and
a layer with both of its branches, so that depth is chosen along. The units of a hybrid's stem spend from the same budget.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.compress import knapsack
from trainer.compress.allocate import GROUPS_STEP, Cost, Rounding, best, units_of
from trainer.compress.losses import LayerCurves, Losses
from trainer.compress.plan import Layer, Plan, narrowed
from trainer.compress.scores import Scores
from trainer.description import Block, ViT, with_groups

_TRIES = 4  # a cost that is no exact sum is aimed at anew
_NOTHING = Block(0, 0, 0, 0)


def within(
    teacher: ViT, width: int, scores: Scores, losses: Losses, cost: Cost, budget: int, rounding: Rounding
) -> Plan | None:
    """The plan of `width` that loses least within `budget`, or None where there is none."""
    units = list(_units(losses[len(teacher.blocks) :]))
    bare = dataclasses.replace(narrowed(teacher, width), blocks=())
    if units:
        bare = with_groups(bare, [options[0][0] for options in units])
    fixed, limit = cost(bare), float(budget)
    groups = [list(_options(block, curves, rounding)) for block, curves in _branches(teacher, losses)]
    costs = [np.array([_branch_cost(bare, option, cost) for option, _ in group]) for group in groups]
    costs += _unit_costs(bare, units, cost)
    weights = [np.array([loss for _, loss in group]) for group in groups]
    weights += [np.array([loss for _, loss in unit]) for unit in units]
    for _ in range(_TRIES):
        chosen = knapsack.choose(costs, weights, limit - fixed)
        if chosen is None:
            return None
        plan = _plan(teacher, width, scores, [group[index][0] for group, index in zip(groups, chosen)])
        left = [unit[index][0] for unit, index in zip(units, chosen[len(groups) :])]
        plan = dataclasses.replace(plan, stem=units_of(teacher, scores, left))
        if plan.layers and (spent := cost(plan.shape_of(teacher))) > budget:
            limit -= spent - budget
            continue
        return plan if plan.layers else None
    return None


def _units(losses: Losses) -> Iterator[list[tuple[int, float]]]:
    """For each unit of the stem, the groups that may stay, the fewest first, and what that loses."""
    for curve in (curves["stem"] for curves in losses if "stem" in curves):
        yield [(left, curve.at(left)) for left in steps(curve.sizes[-1], GROUPS_STEP)]


def _unit_costs(bare: ViT, units: Sequence[list[tuple[int, float]]], cost: Cost) -> list[np.ndarray]:
    """What the options of each unit cost more than the first one, in a model without blocks whose units have their first."""
    least = [options[0][0] for options in units]

    def grown(place: int, left: int) -> ViT:
        return with_groups(bare, [*least[:place], left, *least[place + 1 :]])

    return [
        np.array([float(cost(grown(place, left)) - cost(bare)) for left, _ in options])
        for place, options in enumerate(units)
    ]


def _branch_cost(bare: ViT, branch: Block, cost: Cost) -> float:
    """What the branch adds to the cost of a model without blocks."""
    if branch == _NOTHING:
        return 0.0
    return float(cost(dataclasses.replace(bare, blocks=(branch,))) - cost(bare))


def _branches(teacher: ViT, losses: Losses) -> Iterator[tuple[Block, LayerCurves]]:
    """Each layer's attention and then its MLP, as blocks of one branch."""
    for block, curves in zip(teacher.blocks, losses):  # behind these are the units of the stem
        yield dataclasses.replace(block, mlp_dim=0), curves
        yield Block(0, 0, 0, block.mlp_dim), curves


def _options(branch: Block, curves: LayerCurves, rounding: Rounding) -> Iterator[tuple[Block, float]]:
    """Every size that the branch may be left with, and what it loses."""
    yield _NOTHING, _loss_without(branch, curves)
    if branch.mlp_dim:
        for neurons in steps(branch.mlp_dim, rounding.mlp):
            yield Block(0, 0, 0, neurons), curves["mlp"].at(neurons)
    if branch.num_heads:
        sizes = itertools.product(
            range(1, branch.num_heads + 1),
            steps(branch.qk_dim, rounding.head_dim),
            steps(branch.v_dim, rounding.head_dim),
        )
        for heads, query_key, value in sizes:
            thinner = curves["query_key"].at(query_key) + curves["value"].at(value)
            yield (
                Block(heads, query_key, value, 0),
                curves["heads"].at(heads) + thinner * heads / branch.num_heads,
            )


def _loss_without(branch: Block, curves: LayerCurves) -> float:
    name = "mlp" if branch.mlp_dim else "heads"
    return curves[name].at(0) if branch.mlp_dim or branch.num_heads else 0.0


def steps(full: int, multiple: int) -> list[int]:
    """The sizes from `multiple` to `full`, which always is one."""
    return sorted({*range(multiple, full, multiple), full})


def _plan(teacher: ViT, width: int, scores: Scores, chosen: Sequence[Block]) -> Plan:
    layers = []
    for source, (attention, mlp) in enumerate(zip(chosen[::2], chosen[1::2], strict=True)):
        own = scores[str(source)]
        heads = best(own["heads"], attention.num_heads) if attention.num_heads else ()
        neurons = best(own["mlp"], mlp.mlp_dim) if mlp.mlp_dim else ()
        if heads or neurons:
            layers.append(Layer(source, heads, attention.qk_dim, attention.v_dim, neurons))
    return Plan(tuple(layers), 0 if width == teacher.width else width)
