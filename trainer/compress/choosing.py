"""From what is asked (a budget of any kind, or a shape) to candidates, best first."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serving.command import UserError
from trainer import description
from trainer.compress import elimination, goals, least_accuracy, losses, merging, nearest, search, target
from trainer.compress import plan as plans
from trainer.compress import scores as scoring
from trainer.compress.allocate import Cost
from trainer.compress.calibration_pass import Partial
from trainer.compress.given import Given
from trainer.compress.goals import Goal
from trainer.compress.losses import Losses
from trainer.compress.plan import Plan
from trainer.compress.remembering import RememberingJudge
from trainer.compress.repair import cut
from trainer.compress.scores import Scores
from trainer.compress.search import Candidate
from trainer.compress.stages import write_text
from trainer.description import ViT

COSTS: dict[str, Cost] = {"params": description.param_count, "macs": description.macs}
_SCORES, _JUDGED = "scores.npz", "search.json"
LOSSES = "losses.json"
_OF = "of"  # the name in scores.npz of what they were measured of
_log = logging.getLogger(__name__)
_ROUNDING = 1e-9  # of a difference of two fractions: less than one image of any data set


@dataclasses.dataclass(frozen=True)
class Judged:
    """A plan that was judged: its KL to the teacher in nats, and what it costs of what was limited."""

    plan: Plan
    divergence: float
    cost: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """Candidates, best first; how a measured budget was met, if one was; every plan that was judged, at what it costs of `cost`."""

    candidates: list[Candidate]
    met: dict[str, Any]
    cost: str
    judged: list[Judged]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "candidates": [dataclasses.asdict(one) for one in self.candidates],
            "met": self.met,
            "cost": self.cost,
            "judged": [dataclasses.asdict(one) for one in self.judged],
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Choice":
        """The inverse of `to_json`."""
        candidates = [Candidate(**_with_plan(one)) for one in values["candidates"]]
        judged = [Judged(**_with_plan(one)) for one in values["judged"]]
        return Choice(candidates, values["met"], values["cost"], judged)


def _with_plan(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "plan": plans.from_json(values["plan"])}


def check(given: Given) -> Goal | None:
    """Refuses a budget or a shape that no cut of the teacher has; a budget that must be measured becomes a goal.

    Raises:
      UserError: with the nearest that is possible.
    """
    config, teacher = given.config, given.teacher.model
    cost, budget = limit_of(given)
    if budget:
        name = next(name for name, one in COSTS.items() if one is cost)
        asked = getattr(config.budget, name)
        name = f"budget.{name}={asked:g} of the teacher's:" if asked <= 1 else f"budget.{name}"
        search.check_budget(teacher, cost, budget, given.rounding, name)
    if config.searched:
        search.require_images(teacher, config.calibration.batch, config.calibration.examples)
    target.asked(config.shape, teacher)
    merging.stated(teacher, config.shape.merge)
    if config.budget.min_top1 and config.budget.min_top1 > given.teacher_top1:
        raise UserError(
            f"budget.min_top1={config.budget.min_top1:g} is above the teacher's own "
            f"{nearest.at_most(given.teacher_top1)} on the validation images; ask at most that"
        )
    return goals.of(config.budget, teacher, given.rounding)


def limit_of(given: Given) -> tuple[Cost, int]:
    """The cost that is limited and its limit, 0 for none; a value of at most 1 is a fraction of the teacher's cost."""
    for name, cost in COSTS.items():
        value = getattr(given.config.budget, name)
        if value:
            return cost, int(value * cost(given.teacher.model)) if value <= 1 else int(value)
    return description.param_count, 0


def choose(given: Given, goal: Goal | None, folder: Path) -> Choice:
    """Searches; scores and what was judged are kept in `folder`, so that an interrupted search goes on.

    Raises:
      UserError: when nothing was found that is within the budget.
    """
    _forget_others(folder / LOSSES, given)
    judge = RememberingJudge(given.teacher, folder / _JUDGED, given.basis)
    basis = _Basis(given, _scores(given, folder / _SCORES), judge, folder / LOSSES)
    candidates, met = _search(basis, goal)
    if given.config.sensitivity:
        _tell(basis)
    name, cost = _costs(given, goal)
    judged = [Judged(plan, loss, cost(plan.shape_of(given.teacher.model))) for plan, loss in judge.judged]
    return Choice(candidates, met, name, judged)


def _forget_others(path: Path, given: Given) -> None:
    """Removes losses that were measured of something else, which a report would tell."""
    if path.is_file() and json.loads(path.read_text()).get("hashes") != _of_losses(given):
        path.unlink()


def _of_losses(given: Given) -> dict[str, str]:
    return {**given.basis, "told": str(given.config.sensitivity)}


def _tell(basis: "_Basis") -> None:
    """Measures what a report tells beside; a search that needed none of it does not end for want of images."""
    try:
        basis.losses()
    except UserError as error:
        _log.warning("what each layer bears is not told: %s", error)


def _costs(given: Given, goal: Goal | None) -> tuple[str, Callable[[ViT], float]]:
    """What candidates are compared by: what is limited, or MACs, and how much of it a model needs before it is measured."""
    if goal:
        return f"{goal.name}, predicted", goal.cost
    cost, budget = limit_of(given)
    return next((name, one) for name, one in COSTS.items() if one is (cost if budget else description.macs))


def _scores(given: Given, path: Path) -> Scores:
    basis = json.dumps(given.basis)
    if path.is_file():
        with np.load(path) as file:
            stored = dict(file)
        if str(stored.pop(_OF, "")) == basis:
            return scoring.from_arrays(stored)
    teacher, config = given.teacher, given.config
    looked_at = search.searched(teacher.model, teacher.how.batch)
    partial = Partial(path.with_name("scores.partial.npz"), basis)
    found = scoring.score(
        teacher.model,
        teacher.params,
        teacher.images[:looked_at],
        config.score,
        config.seed,
        teacher.how.batch,
        partial=partial,
        labels=given.labels[:looked_at] if config.calibration.labelled else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(".scores.draft.npz")
    np.savez(draft, **{_OF: np.array(basis)}, **scoring.to_arrays(found))  # type: ignore[arg-type]
    draft.rename(path)
    partial.forget()
    return found


@dataclasses.dataclass(frozen=True)
class _Basis:
    """What a search goes by; what each layer bears is measured when it is first asked for, and kept at `path`."""

    given: Given
    scores: Scores
    judge: RememberingJudge
    path: Path

    @functools.cached_property
    def ranked(self) -> Scores:
        """The neurons in the order of a refit: what a layer loses without some is measured and repaired anyway."""
        teacher, how = self.given.teacher, self.given.teacher.how
        return elimination.neurons(
            teacher.model, teacher.params, self.scores, self.judge.walk(), how.batch, how.ridge
        )

    def losses(self) -> Losses:
        """What was kept, or what is measured now and kept."""
        if self.path.is_file():
            return losses.read(json.loads(self.path.read_text())["losses"])
        told = self.given.config.sensitivity
        found = search.measure_losses(self.given.teacher, self.ranked, self.judge, told)
        write_text(
            self.path, json.dumps({"hashes": _of_losses(self.given), "losses": losses.plain(found)}) + "\n"
        )
        return found


def _search(basis: _Basis, goal: Goal | None) -> tuple[list[Candidate], dict[str, Any]]:
    given = basis.given
    if given.config.shape.stated:
        return [_stated(basis)], {}
    within = _searcher(basis)
    if goal:
        spend = goal.spend
        return goals.reach(goal, given.teacher.model, lambda limit: within(spend, limit))
    cost, budget = limit_of(given)
    if budget:
        return within(cost, budget), {}
    return least_accuracy.smallest(
        given.teacher.model,
        given.rounding,
        lambda limit: within(description.macs, limit),
        lambda plan: _accuracy(given, plan),
        least_top1(given),
        given.teacher_top1,
    )


def _searcher(basis: _Basis) -> Callable[[Cost, int], list[Candidate]]:
    """(cost, budget) → candidates within it, best first, by the search that the configuration asks for."""
    given, judge = basis.given, basis.judge
    teacher, rounding = given.teacher, given.rounding
    if given.config.search == "uniform":
        return lambda cost, budget: search.uniform(teacher, basis.scores, cost, budget, rounding, judge)
    ranked, table = basis.ranked, basis.losses()

    def within(cost: Cost, budget: int) -> list[Candidate]:
        return search.to_budget(teacher, ranked, table, cost, budget, rounding, judge)

    offered = merging.offered(given.config.merge, teacher.model)
    return merging.also_merging(within, teacher, judge) if offered else within


def _stated(basis: _Basis) -> Candidate:
    given, judge = basis.given, basis.judge
    teacher = given.teacher.model
    sizes = target.asked(given.config.shape, teacher)
    removed = len(teacher.blocks) - sizes.num_layers
    dropped = set(search.missed_least(given.teacher, judge)[:removed]) if removed else set()
    plan = target.plan(teacher, basis.scores, dropped, sizes)
    if given.config.shape.merge:
        merged = merging.stated(plan.shape_of(teacher), given.config.shape.merge)
        plan = dataclasses.replace(plan, merged=merged)
    size = description.param_count(plan.shape_of(teacher))
    return Candidate("the stated shape", plan, size, judge(plan))


def least_top1(given: Given) -> float:
    """The validation top-1 that must remain, as a fraction; 0 when none is asked."""
    budget = given.config.budget
    return given.teacher_top1 - budget.max_drop - _ROUNDING if budget.max_drop else budget.min_top1


def _accuracy(given: Given, plan: Plan) -> float:
    """Validation top-1 of the plan, cut and repaired with all calibration images."""
    teacher = given.teacher
    params, _ = cut(teacher.model, given.loaded.params, plan, teacher.images, teacher.how, given.seen())
    return given.worth(plan.shape_of(teacher.model), params)


def dumped(plan: Plan) -> str:
    """The text of plan.json."""
    return json.dumps(plan.to_json()) + "\n"
