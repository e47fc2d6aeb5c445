"""One compression: score → search → cut → repair → distil → quantize → export → check → report.

    WORKDIR/scores.npz, losses.json, search.json   what every unit matters, what each part of each layer bears, and what every
                                      plan that was judged is worth
           /plan.json, checkpoints/   the plan that was chosen, and the cut and repaired model
           /teacher/                  published weights as a checkpoint, where they were asked for
           /halving/, ladder/         short distillations that rank candidates; the rungs of a deep cut
           /distil/                   the training of the cut model towards the teacher
           /models/NAME/1             the bundle
           /report.{md,json,html}     what was asked, what came out, and why; plots beside it
           /compression.json, stages/ what this is a compression of, and what of it is done

Run again with the same configuration, it goes on with the first stage that is not done.
"""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

from serving.command import UserError
from trainer import description
from trainer.compress import choosing, distilling, halving, ladder, report, shipping, target
from trainer.compress.choosing import COSTS, Choice
from trainer.compress.cutting import carry_out
from trainer.compress.distilling import distil
from trainer.compress.given import Given, open_given, with_teacher_in
from trainer.compress.goals import Goal
from trainer.compress.origin import Origin
from trainer.compress.report.record import Record
from trainer.compress.search import Candidate
from trainer.compress.sensitivity import Sensitivity
from trainer.compress.shipping import Limit
from trainer.compress.stages import DISTIL, EXPORT, HALVING, Result, Stages
from trainer.compress.stopping import stoppable
from trainer.config import Compression


def compress(config: Compression, origin: Origin, workdir: Path) -> dict[str, object]:
    """Compresses the teacher as `config` says; everything lies in `workdir` afterwards.

    Returns parameters and MACs before and after, asked and actual, validation accuracy at every stage, and of a shipped bundle
    what was measured.

    Raises:
      UserError: for bad input, before anything is written; when the shipped bundle is not within the budget, after everything
        is; and (code 42, or 130 after Ctrl-C) when asked to stop, with what is finished saved.
    """
    with stoppable(workdir):
        given = open_given(config, origin)
        hashes = given.hashes
        if config.budget.profile:
            hashes["latency profile"] = hashlib.sha256(Path(config.budget.profile).read_bytes()).hexdigest()
        stages = Stages(workdir, config, hashes)  # before anything is timed
        goal = choosing.check(given)
        distilling.check(given)
        stages.begin()
        with stages.forgotten_when_refused():
            given = with_teacher_in(given, workdir / "teacher")
            return _Job(given, goal, workdir, stages).run()


class _Job:
    """The stages in their order."""

    def __init__(self, given: Given, goal: Goal | None, workdir: Path, stages: Stages) -> None:
        self._given, self._goal, self._workdir, self._stages = given, goal, workdir, stages
        self._began_s = time.monotonic()

    def run(self) -> dict[str, object]:
        """All of them up to `until`; what is finished is told as the result."""
        below, goal, choice, rungs = self._descended()
        ranks, chosen, met = self._ranked(below, goal, choice)
        at, plan = self._workdir, chosen.plan
        choice = dataclasses.replace(choice, met=met)
        cut = self._stages.run("cut", lambda: carry_out(below, plan, met, at))
        top1 = self._top1(cut["validation_top1"], bool(rungs))
        student = self._distilled(below, top1)
        shipped, limits = self._shipped(student, top1)
        remarks = [*cut["remarks"], *ladder.remarks(rungs)]
        bears = Sensitivity.of(at / choosing.LOSSES)
        record = Record(
            self._given, below, choice, chosen, ranks, rungs, top1, remarks, shipped, limits, bears
        )
        report.write(at, record, self._stages.seconds)
        shipping.require(limits, str(shipped.get("bundle", "")))
        return self._result(plan.shape_of(below.teacher.model), student, top1, remarks, met, shipped)

    def _descended(self) -> tuple[Given, Goal | None, Choice, list[Result]]:
        """What the last cut begins with, and its candidates; the rows of the rungs before it, if there are any."""
        given, at, distil = self._given, self._workdir, self._given.config.distil
        choice = self._search(given, self._goal, at, "search")
        if distil.rungs == 1 or not distil.total_steps:
            return given, self._goal, choice, []
        below, rungs = ladder.climb(given, choice, at / "ladder", self._stages)
        if not rungs:
            return given, self._goal, choice, []
        goal = _last_goal(below, len(rungs))
        return below, goal, self._search(below, goal, at / "ladder" / "last", "last-rung-search"), rungs

    def _search(self, given: Given, goal: Goal | None, folder: Path, name: str) -> Choice:
        found = self._stages.run(name, lambda: choosing.choose(given, goal, folder).to_json())
        return Choice.from_json(found)

    def _ranked(
        self, given: Given, goal: Goal | None, choice: Choice
    ) -> tuple[list[Result], Candidate, Result]:
        """The rows of successive halving, if it was asked for, the candidate that is taken, and how it meets the budget."""
        first, *others = choice.candidates[: max(given.config.halving.candidates, 1)]
        met = [choice.met] * (1 + len(others))
        if others and goal:  # only the first was measured by the search
            done = self._stages.run(f"{HALVING}-measured", lambda: {"kept": _within(goal, given, others)})
            others = [others[one["place"]] for one in done["kept"]]
            met[1:] = [choice.met | one["met"] for one in done["kept"]]
        if not others:
            return [], first, choice.met
        field = [first, *others]
        rows = halving.race(given, field, self._workdir / "halving", self._stages)
        won = rows[0]["before"]
        # From here on a place is one among all candidates.
        ranked = [{**row, "before": choice.candidates.index(field[row["before"]])} for row in rows]
        return ranked, field[won], met[won]

    def _top1(self, cut: dict[str, float], laddered: bool) -> dict[str, float]:
        """Top-1 by stage so far; what the last cut of a ladder began with is not the teacher."""
        if not laddered:
            return dict(cut)
        return {"teacher": self._given.teacher_top1, "last rung": cut["teacher"]} | {
            name: value for name, value in cut.items() if name != "teacher"
        }

    def _distilled(self, given: Given, top1: dict[str, float]) -> Path:
        """Where the student lies: distilled, if that was asked for."""
        at, steps = self._workdir, given.config.distil.total_steps
        if given.config.until == "cut" or not steps:
            return at
        qat_steps = given.config.distil.qat_steps
        trained = self._stages.run(DISTIL, lambda: distil(given, at, at / "distil", steps, qat_steps))
        top1["distilled"] = trained["validation_top1"]
        return at / "distil"

    def _shipped(self, student: Path, top1: dict[str, float]) -> tuple[Result, list[Limit]]:
        """What was measured of the bundle, and the limits that it is held to; nothing when the command ends before."""
        given = self._given
        if given.config.until != "export":
            return {}, []
        exported = self._stages.run(EXPORT, lambda: shipping.export(given, student, self._workdir))
        # Measured every time: a report says what is, on the machine where it is asked for.
        shipped = shipping.measure(given, Path(exported["bundle"]))
        tested = self._stages.run("test", lambda: {"teacher": given.teacher_tested()})
        shipped["teacher_test_top1"] = tested["teacher"]
        if "why" in exported:
            shipped["why"] = exported["why"]
        top1["shipped"] = shipped["top1"]
        return shipped, shipping.limits(given, shipped)

    def _result(
        self,
        model: description.ViT,
        student: Path,
        accuracies: dict[str, float],
        remarks: list[str],
        met: dict[str, Any],
        shipped: Result,
    ) -> dict[str, object]:
        teacher, budget, shape = (
            self._given.teacher.model,
            self._given.config.budget,
            self._given.config.shape,
        )
        asked = target.asked(shape, teacher) if shape.stated else None
        sizes = {
            name: {"teacher": cost(teacher), "asked": getattr(budget, name) or None, "actual": cost(model)}
            for name, cost in COSTS.items()
        }
        stage = "shipped" if shipped else "distilled" if "distilled" in accuracies else "pruned"
        return {
            "stage": stage,
            **sizes,
            "validation_top1": accuracies,
            "remarks": remarks,
            "seconds_by_stage": self._stages.seconds,
            "seconds": round(time.monotonic() - self._began_s, 1),
            **({"budget": met} if met else {}),
            **({"shape": target.report(teacher, asked, model)} if asked else {}),
            **({"shipped": shipped} if shipped else {}),
            "workdir": str(self._workdir),
            "checkpoint": str(student),
        }


def _last_goal(below: Given, rungs: int) -> Goal | None:
    """What the last cut of a ladder of so many rungs before it must reach.

    Raises:
      UserError: where what the rungs came to leaves nothing to cut for it.
    """
    try:
        return choosing.check(below)
    except UserError as error:
        raise UserError(
            f"after {rungs} distilled rungs, the last of which is cut now: {error}; or climb with fewer "
            "--config.distil.rungs, or more --config.distil.total_steps, in another --workdir"
        ) from error


def _within(goal: Goal, given: Given, candidates: list[Candidate]) -> list[Result]:
    """Those that are measured within the goal: their places, and what was predicted and measured."""
    found = []
    for place, one in enumerate(candidates):
        shape = one.plan.shape_of(given.teacher.model)
        measured, predicted = goal.measure(shape), goal.predicted(shape)
        if measured.value <= goal.asked:
            met = {"predicted": predicted, "measured": measured.value, "spread": measured.spread}
            found.append({"place": place, "met": met})
    return found
