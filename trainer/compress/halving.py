"""Successive halving: the best candidates are distilled shortly, and the better half for twice as long, until one is left.

The best cut before distillation is not always the best after it (notes of Model Optimizer: a lead of 8 points turned into a
lag of 4). Candidates are ranked by their KL to the teacher on the validation images, without labels; top-1 goes into the
report.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from serving.command import progress
from trainer import checkpoint, description
from trainer.checkpoint import Loaded
from trainer.compress.cutting import carry_out
from trainer.compress.distilling import distil
from trainer.compress.given import Given
from trainer.compress.losses import divergence
from trainer.compress.moments import Array
from trainer.compress.plan import Plan
from trainer.compress.search import Candidate
from trainer.compress.stages import HALVING, Stages
from trainer.compress.validation import logits


@dataclasses.dataclass
class _Runner:
    """A candidate in the race: its place before, where its newest weights lie, and what they were worth after each round."""

    before: int
    newest: Path
    rounds: list[dict[str, Any]]

    @property
    def merit(self) -> tuple[int, float]:
        """Whoever lasted longer comes first; then who is nearer to the teacher."""
        return -len(self.rounds), self.rounds[-1]["divergence"]


def race(given: Given, candidates: list[Candidate], folder: Path, stages: Stages) -> list[dict[str, Any]]:
    """Ranks `candidates` (best first before) by short distillation, best first after; one row each.

    A row has `before` (its place, from 0) and `rounds`: steps, KL to the teacher and top-1 after each, the first without any.

    Raises:
      UserError: as a training does.
    """
    # The first teacher, whom every distillation follows; of a ladder's last cut `loaded` is the rung before it.
    wanted = _said(given, checkpoint.load(given.first))
    runners = []
    for place, candidate in enumerate(candidates):
        start = folder / str(place)
        result = stages.run(
            f"{HALVING}-{place}-cut", functools.partial(_cut, given, candidate.plan, start, wanted)
        )
        runners.append(_Runner(place, start, [result]))
    field, steps = runners, given.config.halving.steps
    for turn in range(max(math.ceil(math.log2(len(candidates))), 1)):
        with progress(len(field), "halving") as bar:
            for runner in field:
                to = folder / str(runner.before) / f"round{turn}"
                result = stages.run(
                    f"{HALVING}-{runner.before}-{turn}",
                    functools.partial(_round, given, runner.newest, to, steps, wanted),
                )
                runner.newest, runner.rounds = to, [*runner.rounds, result]
                bar.advance()
        field = sorted(field, key=lambda one: one.merit)[: math.ceil(len(field) / 2)]
        steps *= 2
    return [
        {"before": one.before, "rounds": one.rounds} for one in sorted(runners, key=lambda one: one.merit)
    ]


def _cut(given: Given, plan: Plan, folder: Path, wanted: Array) -> dict[str, Any]:
    carry_out(given, plan, {}, folder)
    return _worth(given, folder, 0, wanted)


def _round(given: Given, start: Path, workdir: Path, steps: int, wanted: Array) -> dict[str, Any]:
    distil(given, start, workdir, steps)
    return _worth(given, workdir, steps, wanted)


def _worth(given: Given, path: Path, steps: int, wanted: Array) -> dict[str, Any]:
    """What the model at `path` is worth after a round of `steps`."""
    found, labels = _said(given, checkpoint.load(path)), given.data.validation.labels
    top1 = float(np.mean(found.argmax(axis=-1) == labels))
    return {"steps": steps, "divergence": divergence(wanted, found), "top1": top1}


def _said(given: Given, loaded: Loaded) -> Array:
    model = description.require_vit(loaded.description, "compression")
    return logits(model, loaded.params, loaded.preprocess, given.data.validation, given.teacher.how.batch)
