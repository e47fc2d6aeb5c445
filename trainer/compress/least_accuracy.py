"""The least accuracy that must remain, as a budget: the fewest MACs whose best cut, before any training step, still keeps it.

Bisection over MACs. Accuracy falls with them but for noise, and each step is a whole search; the last one that kept it is taken.
"""

import math
from collections.abc import Callable
from typing import Any

from serving.command import UserError, progress
from trainer.compress import nearest
from trainer.compress.allocate import Rounding
from trainer.compress.allocate import smallest as smallest_cuts
from trainer.compress.plan import Plan
from trainer.compress.search import Candidate, Infeasible
from trainer.description import ViT, macs

NAME = "min_top1"  # of what such a search met
_STEPS = 8
_NEAR = 1.03  # between a budget that kept it and one that did not, less than this ratio is noise


def smallest(
    teacher: ViT,
    rounding: Rounding,
    search: Callable[[int], list[Candidate]],
    accuracy: Callable[[Plan], float],
    least: float,
    whole: float,
) -> tuple[list[Candidate], dict[str, Any]]:
    """The candidates of the smallest budget whose best keeps the accuracy `least`, and what was tried.

    Args:
      teacher: what is cut.
      rounding: of its sizes.
      search: candidates within so many MACs, best first.
      accuracy: validation top-1 of a plan, a fraction.
      least: what must remain, a fraction.
      whole: what the teacher has, a fraction.

    Raises:
      UserError: when even the whole teacher has less, or no cut that was tried keeps it; with the nearest possible.
    """
    low, high = min(map(macs, smallest_cuts(teacher, rounding))), macs(teacher)
    kept: list[Candidate] = []
    impossible: Infeasible | None = None
    tried: list[dict[str, Any]] = []
    with progress(_STEPS, "searches for the accuracy, at most") as bar:
        for _ in range(_STEPS):
            if high <= _NEAR * low:
                break
            bar.advance()
            budget = round(math.sqrt(low * high))  # halves the ratio that is left
            try:
                found = search(budget)
            except Infeasible as error:
                low, impossible = budget, error
                continue
            top1 = accuracy(found[0].plan)
            tried.append({"macs": found[0].cost, "top1": top1})
            if top1 >= least:
                kept, high = found, found[0].cost
            else:
                low = budget
    if impossible and not tried:
        raise UserError(
            "no cut of this teacher keeps anything of it that is worth a block's cost: the least that does has "
            f"{macs(impossible.least):,} MACs of {macs(teacher):,}; give a budget of so many MACs, or a wider teacher"
        ) from impossible
    if not tried:
        raise UserError(
            f"the teacher's {high:,} MACs are all but the {low:,} that the least cut needs; nothing would be cut"
        )
    if not kept:
        best = max(tried, key=lambda one: (one["top1"], -one["macs"]))
        raise UserError(
            f"no cut keeps a validation top-1 of {least:.6g} without training: the nearest has {nearest.at_most(best['top1'])} at "
            f"{best['macs']:,} MACs; ask at most that (budget.min_top1, or budget.max_drop="
            f"{nearest.at_least(max(whole - best['top1'], 0))}), or give a budget of MACs and let distillation win it back"
        )
    return kept, {"name": NAME, "asked": least, "searches": len(tried), "tried": tried}
