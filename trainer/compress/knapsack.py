"""The least sum of losses within a budget, one option from each group: dynamic programming over costs in small steps.

The multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger 2004, chapter 11). Costs are rounded up to steps, so that
what is chosen is within the budget; with `STEPS` of them, a group wastes at most a two-thousandth of it.
"""

from collections.abc import Sequence

import numpy as np

from trainer.compress.moments import Array

STEPS = 2000


def choose(costs: Sequence[Array], losses: Sequence[Array], budget: float) -> list[int] | None:
    """The option of each group whose sum of losses is least while that of the costs is within `budget`; None if none is.

    Args:
      costs: for each group, what its options cost, (options,).
      losses: likewise, what they lose.
      budget: in the unit of the costs.
    """
    if budget < 0:
        return None
    unit = max(budget / STEPS, np.finfo(float).tiny)
    reach = np.full(STEPS + 1, np.inf)  # least loss so far by steps spent at most
    reach[:] = 0.0
    choices = []
    for cost, loss in zip(costs, losses, strict=True):
        steps = np.ceil(np.asarray(cost) / unit * (1 - 1e-12)).astype(int)
        best, chosen = np.full(STEPS + 1, np.inf), np.zeros(STEPS + 1, int)
        for option in np.flatnonzero(steps <= STEPS):
            here = np.full(STEPS + 1, np.inf)
            here[steps[option] :] = reach[: STEPS + 1 - steps[option]] + loss[option]
            better = here < best
            best[better], chosen[better] = here[better], option
        reach = best
        choices.append((steps, chosen))
    if not np.isfinite(reach[STEPS]):
        return None
    left, found = STEPS, list[int]()
    for steps, chosen in reversed(choices):
        found.append(int(chosen[left]))
        left -= int(steps[found[-1]])
    return found[::-1]
