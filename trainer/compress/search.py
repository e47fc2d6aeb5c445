"""Chooses the plan for a budget by carrying candidates out, because what repair can mend no score knows.

Candidates: with all layers, and with the one or two that are missed least removed; each with the budget spent greedily by score
and uniformly. Every candidate is cut and repaired on most of the calibration images; the one nearest to the teacher on the
rest (KL of predictions, no labels) wins.
"""

import dataclasses

import numpy as np
import scipy.special

from serving.command import UserError, progress
from trainer.compress import allocate, streams
from trainer.compress.allocate import Cost, Rounding
from trainer.compress.moments import Array
from trainer.compress.plan import Plan, identity, without_layers
from trainer.compress.repair import Repair, cut
from trainer.compress.scores import Scores
from trainer.description import ViT
from trainer.models.build import Params

_HELD_OUT = 4  # one calibration batch in four judges, the others repair
_DEPTHS = 3  # how many depths are tried, from the deepest that the budget allows


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A plan that was tried, how it was made, what it costs, and its KL to the teacher in nats an image."""

    made_by: str
    plan: Plan
    cost: int
    divergence: float


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model that is cut, with normalised calibration images (images, H, W, C)."""

    model: ViT
    params: Params
    images: Array
    how: Repair


def divergence(teacher: Array, student: Array) -> float:
    """Mean KL(teacher ‖ student) in nats of two sets of logits (images, classes)."""
    old, new = (scipy.special.log_softmax(logits, axis=-1) for logits in (teacher, student))
    return float(np.mean(np.sum(np.exp(old) * (old - new), axis=-1)))


class Judge:
    """Cuts, repairs and judges plans on a split of the calibration images that stays the same for all."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        count = len(teacher.images)
        if count < _HELD_OUT:
            raise UserError(
                f"{count} calibration images cannot be split into those that repair and those that judge; "
                f"at least {_HELD_OUT} are needed: raise --config.calibration.examples"
            )
        # Whole batches on either side: a shorter last batch would be compiled for every shape that is tried.
        size = min(teacher.how.batch, count // _HELD_OUT)
        held_out = np.arange(count) // size % _HELD_OUT == 0
        self._fitted, self._held_out = teacher.images[~held_out], teacher.images[held_out]
        self._wanted = streams.logits(teacher.model, teacher.params, self._held_out, teacher.how.batch)

    def __call__(self, plan: Plan) -> float:
        """KL of the repaired plan on images that repaired nothing."""
        teacher = self._teacher
        params, _ = cut(teacher.model, teacher.params, plan, self._fitted, teacher.how)
        found = streams.logits(plan.shape_of(teacher.model), params, self._held_out, teacher.how.batch)
        return divergence(self._wanted, found)


def missed_least(teacher: Teacher, judge: Judge) -> list[int]:
    """The layers in the order in which they are missed least: KL after removing one alone and repairing the rest."""
    whole, losses = identity(teacher.model), []
    with progress(len(whole.layers), "depth") as bar:
        for layer in whole.layers:
            losses.append(judge(without_layers(whole, {layer.source})))
            bar.advance()
    return [int(index) for index in np.argsort(losses, kind="stable")]


def to_budget(
    teacher: Teacher,
    scores: Scores,
    cost: Cost,
    budget: int,
    rounding: Rounding,
    judge: Judge,
    order: list[int],
) -> list[Candidate]:
    """Candidates within `budget`, best first.

    Raises:
      UserError: when the budget is above the teacher's cost or below what one block needs.
    """
    check_budget(teacher.model, cost, budget, rounding)
    found: list[tuple[str, Plan]] = []
    depths: set[int] = set()
    for dropped in range(len(order)):
        layers = without_layers(identity(teacher.model), set(order[:dropped]))
        for name, allocation in (("greedy", allocate.greedy), ("uniform", allocate.uniform)):
            plan = allocation(teacher.model, layers, scores, cost, budget, rounding)
            if plan is not None and plan not in [other for _, other in found]:
                found.append((f"{name}, {len(layers.layers)} layers", plan))
                depths.add(dropped)
        if len(depths) == _DEPTHS:
            break
    if not found:
        raise UserError(
            f"budget {budget:,} cannot be met with whole blocks of this teacher; raise it a little"
        )
    candidates = []
    with progress(len(found), "candidates") as bar:
        for name, plan in found:
            candidates.append(Candidate(name, plan, cost(plan.shape_of(teacher.model)), judge(plan)))
            bar.advance()
    return sorted(candidates, key=lambda candidate: candidate.divergence)


def check_budget(teacher: ViT, cost: Cost, budget: int, rounding: Rounding) -> None:
    """Refuses a budget that no cut can meet, or that needs no cut."""
    least, most = min(map(cost, allocate.smallest(teacher, rounding))), cost(teacher)
    if budget > most:
        raise UserError(f"budget {budget:,} is above the teacher's {most:,}; nothing would be cut: give less")
    if budget < least:
        raise UserError(
            f"budget {budget:,} is below the {least:,} that one block needs; give at least that, or a smaller teacher"
        )
