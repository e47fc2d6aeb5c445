"""A deep cut in several rungs: at most a third of the cost goes at once, and each rung is distilled before the next cut.

Budgets of the rungs fall geometrically to the last one. The teacher of every distillation is the first one.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

from trainer import description
from trainer.compress import choosing
from trainer.compress.choosing import COSTS, Choice
from trainer.compress.cutting import carry_out
from trainer.compress.distilling import distil
from trainer.compress.given import Given, cutting
from trainer.compress.search import Candidate
from trainer.compress.stages import RUNG, Stages
from trainer.config import Budget, Compression
from trainer.config.compression import LIMITS

_THIRD = 2 / 3  # of the cost remains after a rung, at least


def count(rungs: int, kept: float) -> int:
    """How many rungs lead to the fraction `kept` of the cost; `rungs` unless that is 0."""
    return rungs or max(math.ceil(math.log(kept) / math.log(_THIRD) - 1e-9), 1)


def fractions(kept: float, rungs: int) -> list[float]:
    """What each of `rungs` keeps of the first teacher's cost, the last one `kept`."""
    return [kept ** (rung / rungs) for rung in range(1, rungs + 1)]


def remarks(rows: list[dict[str, Any]]) -> list[str]:
    """What to say of the `rows` of a ladder whose rungs were given and are too few for the rule of a third."""
    ratio = rows[0]["kept"] ** (1 / rows[0]["rung"]) if rows else 1.0
    if ratio >= _THIRD - 1e-9:
        return []
    enough = count(0, ratio ** (rows[-1]["rung"] + 1))
    return [
        f"each rung keeps {ratio:.0%} of the cost before it; at most a third would go at once with {enough} rungs, "
        "which is what distil.rungs=0 takes"
    ]


def climb(given: Given, first: Choice, workdir: Path, stages: Stages) -> tuple[Given, list[dict[str, Any]]]:
    """Cuts and distils all rungs but the last, in `workdir`/RUNG; what the last cut begins with, and a row for each rung.

    Args:
      given: the compression of the first teacher.
      first: what a single cut of the first teacher would be: how deep the budget cuts.
      workdir: where the rungs go.
      stages: what is done already.

    Raises:
      UserError: as a search and a training do.
    """
    teacher = given.teacher.model
    budget = given.config.budget
    name = "params" if budget.params or budget.mib else "macs"  # what the budget is nearest to
    cost = COSTS[name]
    kept = cost(first.candidates[0].plan.shape_of(teacher)) / cost(teacher)
    rungs = count(given.config.distil.rungs, kept)
    rows, below = [], given
    for rung, fraction in enumerate(fractions(kept, rungs)[:-1], 1):
        folder, limit = workdir / str(rung), int(fraction * cost(teacher))
        if limit >= cost(below.teacher.model):  # the rung before it came further down than it had to
            continue
        limited = _only(budget, name, limit)
        # What each layer bears is told of the first teacher.
        config = dataclasses.replace(given.config, budget=limited, sensitivity=False)
        here = dataclasses.replace(below, config=config)
        best = _found(here, folder, stages)
        if cost(best.plan.shape_of(below.teacher.model)) <= kept * cost(teacher):
            break  # sizes are no finer: the last cut comes to the same from where it would begin now
        row = stages.run(f"{RUNG}-{rung}", functools.partial(_rung, here, best, folder, stages))
        rows.append({"rung": rung, "kept": fraction, **row})
        below = cutting(below, folder / "distil", _absolute(given))
    return below, rows


def _found(given: Given, folder: Path, stages: Stages) -> Candidate:
    """The cut of a rung."""
    done = stages.run(f"search-{folder.name}", lambda: choosing.choose(given, None, folder).to_json())
    return Choice.from_json(done).candidates[0]


def _rung(given: Given, best: Candidate, folder: Path, stages: Stages) -> dict[str, Any]:
    cut = stages.run(f"cut-{folder.name}", lambda: carry_out(given, best.plan, {}, folder))
    trained = distil(given, folder, folder / "distil", given.config.distil.total_steps)
    shape = best.plan.shape_of(given.teacher.model)
    return {
        "params": description.param_count(shape),
        "macs": description.macs(shape),
        "cut_top1": cut["validation_top1"]["cut and repaired"],
        "distilled_top1": trained["validation_top1"],
    }


def _only(budget: Budget, name: str, limit: int) -> Budget:
    """The same budget with one limit, `limit` of `name`; a device's profile says nothing of it."""
    limits: dict[str, Any] = {**dict.fromkeys(LIMITS, 0.0), name: float(limit)}
    return dataclasses.replace(budget, profile="", **limits)


def _absolute(given: Given) -> Compression:
    """The configuration with what is asked in numbers of the first teacher, not in fractions of what a rung begins with."""
    budget = given.config.budget
    cost, limit = choosing.limit_of(given)
    for name, one in COSTS.items():
        if limit and one is cost:
            budget = _only(budget, name, limit)
    if budget.max_drop:
        budget = dataclasses.replace(budget, max_drop=0.0, min_top1=choosing.least_top1(given))
    return dataclasses.replace(given.config, budget=budget, sensitivity=False)
