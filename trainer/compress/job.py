"""One compression: score → search → cut → repair → distil → quantize → export → check → report.

    WORKDIR/scores.npz, search.json   what every unit matters, and what every plan that was judged is worth
           /plan.json, checkpoints/   the plan that was chosen, and the cut and repaired model
           /halving/, ladder/         short distillations that rank candidates; the rungs of a deep cut
           /distil/                   the training of the cut model towards the teacher
           /models/NAME/1             the bundle
           /report.{md,json,html}     what was asked, what came out, and why; plots beside it
           /compression.json, stages/ what this is a compression of, and what of it is done

Run again with the same configuration, it goes on with the first stage that is not done.
"""

import time
from pathlib import Path
from typing import Any

from trainer import description
from trainer.compress import choosing, halving, ladder, report, shipping
from trainer.compress.choosing import COSTS, Choice
from trainer.compress.cutting import carry_out
from trainer.compress.distilling import distil
from trainer.compress.given import Given, open_given
from trainer.compress.goals import Goal
from trainer.compress.report.record import Record
from trainer.compress.search import Candidate
from trainer.compress.shipping import Limit
from trainer.compress.stages import Result, Stages
from trainer.compress.stopping import stoppable
from trainer.config import Compression


def compress(config: Compression, teacher_path: Path, workdir: Path) -> dict[str, object]:
    """Compresses the teacher as `config` says; everything lies in `workdir` afterwards.

    Returns parameters and MACs before and after, asked and actual, validation accuracy at every stage, and of a shipped bundle
    what was measured.

    Raises:
      UserError: for bad input, before anything is written; when the shipped bundle is not within the budget, after everything
        is; and (code 42, or 130 after Ctrl-C) when asked to stop, with what is finished saved.
    """
    with stoppable(workdir):
        given = open_given(config, teacher_path)
        goal = choosing.check(given)  # before what takes long
        hashes = {
            "teacher": given.loaded.meta["weights_hash"],
            "calibration images": given.calibration_hash,
        }
        stages = Stages(workdir, config, hashes)
        with stages.forgotten_when_refused():
            return _Job(given, goal, workdir, stages).run()


class _Job:
    """The stages in their order."""

    def __init__(self, given: Given, goal: Goal | None, workdir: Path, stages: Stages) -> None:
        self._given, self._goal, self._workdir, self._stages = given, goal, workdir, stages
        self._began_s = time.monotonic()

    def run(self) -> dict[str, object]:
        """All of them up to `until`; what is finished is told as the result."""
        config, run, at = self._given.config, self._stages.run, self._workdir
        choice = self._search(self._given, self._goal, at, "search")
        below, rungs = self._given, list[Result]()
        if config.distil.rungs != 1 and config.distil.total_steps:
            below, rungs = ladder.climb(self._given, choice, at / "ladder", self._stages)
        if rungs:
            goal = choosing.check(below)
            choice = self._search(below, goal, at / "ladder" / "last", "last-rung-search")
        ranks, chosen = self._ranked(below, choice)
        met, plan = choice.met, chosen.plan
        cut = run("cut", lambda: carry_out(below, plan, met, at))
        accuracies, student = dict(cut["validation_top1"]), at
        if rungs:  # what the last cut began with is no teacher
            accuracies["last rung"] = accuracies["teacher"]
            accuracies["teacher"] = choosing.teacher_top1(self._given)
        if config.until != "cut" and config.distil.total_steps:
            trained = run("distil", lambda: distil(below, at, at / "distil", config.distil.total_steps))
            accuracies["distilled"], student = trained["validation_top1"], at / "distil"
        shipped, limits = self._ship(student) if config.until == "export" else ({}, [])
        if shipped:
            accuracies["shipped"] = shipped["top1"]
        record = Record(
            self._given, below, choice, chosen, ranks, rungs, accuracies, cut["remarks"], shipped, limits
        )
        report.write(at, record, self._stages.seconds)
        shipping.require(limits, str(shipped.get("bundle", "")))
        return self._result(plan.shape_of(below.teacher.model), accuracies, cut["remarks"], met, shipped)

    def _search(self, given: Given, goal: Goal | None, folder: Path, name: str) -> Choice:
        found = self._stages.run(name, lambda: choosing.choose(given, goal, folder).to_json())
        return Choice.from_json(found)

    def _ranked(self, given: Given, choice: Choice) -> tuple[list[Result], Candidate]:
        """The rows of successive halving, if it was asked for, and the candidate that is taken."""
        field = choice.candidates[: given.config.halving.candidates]
        if len(field) < 2:
            return [], choice.candidates[0]
        rows = halving.race(given, field, self._workdir / "halving", self._stages)
        return rows, field[rows[0]["before"]]

    def _ship(self, student: Path) -> tuple[Result, list[Limit]]:
        given, run = self._given, self._stages.run
        exported = run("export", lambda: shipping.export(given, student, self._workdir))
        # Measured every time: a report says what is, on the machine where it is asked for.
        shipped = shipping.measure(given, Path(exported["bundle"]))
        return shipped, shipping.limits(given, shipped)

    def _result(
        self,
        model: description.ViT,
        accuracies: dict[str, float],
        remarks: list[str],
        met: dict[str, Any],
        shipped: Result,
    ) -> dict[str, object]:
        teacher, budget = self._given.teacher.model, self._given.config.budget
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
            "seconds": round(time.monotonic() - self._began_s, 1),
            **({"budget": met} if met else {}),
            **({"shipped": shipped} if shipped else {}),
            "workdir": str(self._workdir),
        }
