"""Token merging as one more axis of a search: how many pairs of alike tokens each layer makes one of.

ToMe (Bolya et al. 2023, arXiv:2210.09461): no weight changes, only how many tokens the later layers see, so that a schedule can
be judged on the uncut model in one pass, by KL on calibration images. What merging saves, cutting need not: the same budget
then leaves larger layers. The few schedules that lose least for what they save get a search of their own, and compete with the
plans that merge nothing. Layers 1 and 2 merge nothing: before a model is retrained, early tokens are too unlike each other.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from serving.command import UserError, progress
from trainer.compress import streams
from trainer.compress.allocate import Cost
from trainer.compress.losses import divergence
from trainer.compress.moments import Array
from trainer.compress.plan import Plan
from trainer.compress.search import Candidate, Judge, Teacher
from trainer.description import ViT, merging, without_merging
from trainer.models.build import Params

Schedule = tuple[int, ...]  # pairs merged, by layer
Search = Callable[[Cost, int], list[Candidate]]  # (cost, budget) → candidates within it, best first

MANY_TOKENS = 100  # from here on merging is offered; on fewer, its own steps cost as much as they save
_FIRST = 2  # the first layer that merges, counted from 0
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the patches that are merged away by the last layer
_TRIED = 2  # schedules that get a search of their own
_TRIES = 3  # what merging saves of a cut model differs from what it saves of the whole: the budget is aimed at anew


@dataclasses.dataclass(frozen=True)
class Merged:
    """The uncut model with a schedule: what it costs, and its KL to the model without, in nats an image."""

    schedule: Schedule
    cost: int
    divergence: float


def offered(merge: str, model: ViT) -> bool:
    """Whether a search is to try merging, by the configuration's `merge`."""
    return merge == "always" or (merge == "auto" and model.num_tokens >= MANY_TOKENS)


def stated(model: ViT, count: int) -> Schedule:
    """`count` pairs in every layer from the third on that has attention.

    Raises:
      UserError: when there are not as many.
    """
    places = _places(model)
    schedule = tuple(count if index in places else 0 for index in range(len(model.blocks)))
    if count and not places:
        raise UserError(
            f"shape.merge={count}: no layer merges tokens but the third and those behind it; keep three"
        )
    try:
        merging(model, schedule)
    except UserError as error:
        raise UserError(f"shape.merge={count}: {error}; ask fewer") from error
    return schedule


def merge_schedules(model: ViT) -> list[Schedule]:
    """Static schedules, none at all first: equal counts in all layers, and counts that fall linearly, by what they merge in all."""
    places = _places(model)
    found = [(0,) * len(model.blocks)]
    for share in _SHARES:
        for weights in ([1] * len(places), range(2 * len(places) - 1, 0, -2)):
            counts = dict(zip(places, _parts(int(share * model.num_patches), weights), strict=True))
            found.append(_possible(model, [counts.get(index, 0) for index in range(len(model.blocks))]))
    return list(dict.fromkeys(found))


def _places(model: ViT) -> list[int]:
    return [index for index, block in enumerate(model.blocks) if index >= _FIRST and block.num_heads]


def _parts(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts by `weights`."""
    ends = np.round(total * np.cumsum([0, *weights]) / max(sum(weights), 1)).astype(int)
    return [int(part) for part in np.diff(ends)]


def _possible(model: ViT, counts: Iterable[int]) -> Schedule:
    """`counts` where no layer merges more than half of the patches that reach it."""
    left, possible = model.num_patches, []
    for count in counts:
        possible.append(min(count, left // 2))
        left -= possible[-1]
    return tuple(possible)


def losses_of(
    model: ViT, params: Params, images: Array, batch: int, schedules: Iterable[Schedule]
) -> dict[Schedule, float]:
    """KL to the model that merges nothing, in nats an image, on normalised `images` (images, H, W, C).

    Merging fits nothing: any images are held out.
    """
    every, found = list(schedules), dict[Schedule, float]()
    wanted = streams.logits(without_merging(model), params, images, batch)
    with progress(len(every), "merging") as bar:
        for schedule in every:
            said = (
                streams.logits(merging(model, schedule), params, images, batch) if any(schedule) else wanted
            )
            found[schedule] = divergence(wanted, said)
            bar.advance()
    return found


def priced(model: ViT, losses: Mapping[Schedule, float], cost: Cost) -> list[Merged]:
    """The schedules of `losses` with what they cost."""
    return [Merged(schedule, cost(merging(model, schedule)), loss) for schedule, loss in losses.items()]


def _saving(found: Sequence[Merged]) -> list[Merged]:
    return [one for one in found if one.cost < found[0].cost]


def _rate(one: Merged, whole: int) -> float:
    """Nats an image for what is saved of the cost."""
    return one.divergence / (whole - one.cost)


def also_merging(search: Search, teacher: Teacher, judge: Judge) -> Search:
    """`search`, which judges by `judge`, with token merging as one more axis; a teacher that merges keeps its own schedule."""
    model = teacher.model
    if any(block.merge for block in model.blocks):
        return search

    @functools.cache
    def losses() -> dict[Schedule, float]:
        schedules = merge_schedules(model)
        return losses_of(model, teacher.params, judge.held_out, teacher.how.batch, schedules)

    def within(cost: Cost, budget: int) -> list[Candidate]:
        candidates, found = search(cost, budget), priced(model, losses(), cost)
        # A schedule that loses more alone than a whole cut does is out of the question.
        worth = [one for one in _saving(found) if one.divergence < candidates[0].divergence]
        worth.sort(key=lambda one: _rate(one, found[0].cost))
        for one in worth[:_TRIED]:
            merged = _to_budget(search, model, one, found[0].cost, cost, budget)
            if merged is not None:
                candidates = [*candidates, dataclasses.replace(merged, divergence=judge(merged.plan))]
        return sorted(candidates, key=lambda candidate: candidate.divergence)

    return within


def _to_budget(
    search: Search, teacher: ViT, one: Merged, whole: int, cost: Cost, budget: int
) -> Candidate | None:
    """The best plan of `search` that is within `budget` once its tokens are merged; not judged yet. None where no try is."""
    aim = budget * whole / one.cost
    for _ in range(_TRIES):
        found = search(cost, min(int(aim), whole))[0]
        plan = merged_plan(found.plan, one.schedule)
        spent = cost(plan.shape_of(teacher))
        if spent <= budget:
            made_by = f"{found.made_by}, {sum(plan.merged)} of {teacher.num_patches} patches merged"
            return Candidate(made_by, plan, spent, np.inf)
        aim *= budget / spent
    return None


def merged_plan(plan: Plan, schedule: Schedule) -> Plan:
    """`plan` whose layers merge what `schedule` says of the layers that they come from."""
    counts = (schedule[layer.source] if layer.heads else 0 for layer in plan.layers)
    return dataclasses.replace(plan, merged=tuple(counts))
