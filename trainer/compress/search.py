"""Chooses the plan for a budget: width by trying, everything else by dynamic programming over measured losses.

For one width the best sizes of all branches follow from what each loses alone (`losses`, `spend`). How these cuts meet, and
what the width costs, only a whole cut tells: the plan of each width that is tried is cut and repaired on most of the calibration
images, and the one nearest to the teacher on the rest (KL of predictions, no labels) wins. Widths are tried outwards from a
first guess while they get better.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from serving.command import UserError, progress
from trainer.compress import allocate, losses, spend, stem_losses, streams, width_losses
from trainer.compress.allocate import Cost, Rounding
from trainer.compress.losses import Losses, divergence
from trainer.compress.moments import ROWS_PER_DIM, Array
from trainer.compress.padding import padded_model
from trainer.compress.plan import Plan, identity, without_layers
from trainer.compress.repair import Repair, Seen, cut
from trainer.compress.scores import Scores
from trainer.description import ViT
from trainer.models.build import Params

_SEARCHED = 384  # calibration images that scores and search look at, where these determine every covariance
_SEARCHED_STEP = 16  # images more each time until they do
_HELD_OUT = 4  # one batch in four of these judges, the others repair
_RAISES = 50  # of a budget that keeps nothing, up to the teacher, to find one that does
_NARROWING = 0.4  # the first width to try keeps this power of what the budget keeps of the cost


class Infeasible(UserError):
    """A budget that a search has no cut for; the `least` model that it can make is above it."""

    def __init__(self, message: str, least: ViT) -> None:
        super().__init__(message)
        self.least = least


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


class Judge:
    """Cuts, repairs and judges plans on a split of the calibration images that stays the same for all; each plan once."""

    def __init__(self, teacher: Teacher) -> None:
        # Plans are compared without refits, which would double the time that each takes.
        self._teacher = dataclasses.replace(teacher, how=dataclasses.replace(teacher.how, refits=0))
        self._known = dict[Plan, float]()
        count = len(teacher.images)
        if count < _HELD_OUT:
            raise UserError(
                f"{count} calibration images cannot be split into those that repair and those that judge; "
                f"at least {_HELD_OUT} are needed: raise --config.calibration.examples"
            )
        # Whole batches on either side: a shorter last batch would be compiled for every width that is tried.
        images = teacher.images[: searched(teacher.model, teacher.how.batch)]
        held_out = _judging(len(images), teacher.how.batch)
        self.fitted, self.held_out = images[~held_out], images[held_out]
        self._wanted = streams.logits(teacher.model, teacher.params, self.held_out, teacher.how.batch)
        self._seen = Seen(teacher.model, teacher.params, self.fitted, teacher.how.batch, keep=True)

    def __call__(self, plan: Plan) -> float:
        """KL of the repaired plan on images that repaired nothing."""
        if plan not in self._known:
            self._known[plan] = self._judge(plan)
        return self._known[plan]

    def walk(self) -> Iterator[Array]:
        """The teacher's stream on the images that repair (`streams.walk`)."""
        return self._seen.walk()

    @property
    def directions(self) -> Array:
        """Those of the teacher's stream (`width.principal_directions`)."""
        return self._seen.directions

    def _judge(self, plan: Plan) -> float:
        teacher = self._teacher
        params, _ = cut(teacher.model, teacher.params, plan, self.fitted, teacher.how, self._seen)
        found = streams.logits(*padded_model(teacher.model, plan, params), self.held_out, teacher.how.batch)
        loss = divergence(self._wanted, found)
        if not math.isfinite(loss):
            raise UserError(
                f"a cut to {len(plan.layers)} layers of width {plan.width or teacher.model.width} answers NaN or infinity on the "
                "calibration images; check the checkpoint's weights, which may be too large for float32 products, and the images"
            )
        return loss


def searched(teacher: ViT, batch: int) -> int:
    """How many calibration images scores and search look at, `batch` at a time; the chosen plan is repaired on all of them."""
    counts = itertools.count(_SEARCHED, _SEARCHED_STEP)
    return next(count for count in counts if _repairing(count, batch) >= _needed(teacher))


def _widest(teacher: ViT) -> int:
    return max(
        [teacher.width, *(max(block.mlp_dim, block.num_heads * block.v_dim) for block in teacher.blocks)]
    )


def _needed(teacher: ViT) -> int:
    """How many images repair at least: those that judge determine nothing."""
    return math.ceil(ROWS_PER_DIM * _widest(teacher) / teacher.num_tokens)


def _repairing(count: int, batch: int) -> int:
    return int(np.count_nonzero(~_judging(count, batch)))


def _judging(count: int, batch: int) -> Array:
    """Which of `count` images judge and repair nothing, (count,): every fourth batch, from the first one on."""
    size = min(batch, count // _HELD_OUT)
    return np.asarray(np.arange(count) // size % _HELD_OUT == 0)


def require_images(teacher: ViT, batch: int, count: int) -> None:
    """Refuses `count` calibration images that are too few for a budget search, before any of them is looked at.

    Raises:
      UserError: naming the widest layer and how many images it needs.
    """
    enough = next(more for more in itertools.count(_HELD_OUT) if _repairing(more, batch) >= _needed(teacher))
    if count < enough:
        raise UserError(
            f"calibration.examples={count} is too few to search with: {_widest(teacher)} dimensions of a layer want "
            f"{ROWS_PER_DIM} samples each, an image has {teacher.num_tokens} tokens, and every fourth batch judges; give at "
            f"least {enough}"
        )


def missed_least(teacher: Teacher, judge: Judge) -> list[int]:
    """The layers in the order in which they are missed least: KL after removing one alone and repairing the rest."""
    whole, found = identity(teacher.model), []
    with progress(len(whole.layers), "depth") as bar:
        for layer in whole.layers:
            found.append(judge(without_layers(whole, {layer.source})))
            bar.advance()
    return [int(index) for index in np.argsort(found, kind="stable")]


def measure_losses(teacher: Teacher, scores: Scores, judge: Judge, told: bool = True) -> Losses:
    """What each part of each layer and each unit of a stem lose by size, on the judge's split of the images.

    And what whole blocks and the stream do, by which nothing is searched, where a report tells them.
    """
    model, params, how = teacher.model, teacher.params, teacher.how
    of_blocks = losses.measure(
        model, params, scores, judge.fitted, judge.held_out, how.batch, how.ridge, told
    )
    of_stem = stem_losses.measure(model, params, scores, judge.fitted, judge.held_out, how)
    if not told:
        return [*of_blocks, *of_stem]
    return [
        *of_blocks,
        *of_stem,
        *width_losses.measure(model, params, judge.directions, judge.held_out, how.batch),
    ]


def to_budget(
    teacher: Teacher,
    scores: Scores,
    table: Losses,
    cost: Cost,
    budget: int,
    rounding: Rounding,
    judge: Judge,
) -> list[Candidate]:
    """Candidates within `budget`, best first.

    Raises:
      UserError: when the budget is above the teacher's cost or below what the least cut needs.
    """
    check_budget(teacher.model, cost, budget, rounding)
    found: dict[int, Candidate] = {}

    def spent_best(width: int, most: int) -> Plan | None:
        return spend.within(teacher.model, width, scores, table, cost, most, rounding)

    def attempt(width: int) -> float:
        plan = spent_best(width, budget)
        if plan is None:
            return np.inf
        spent = cost(plan.shape_of(teacher.model))
        found[width] = Candidate(f"width {width}, sizes by losses", plan, spent, judge(plan))
        return found[width].divergence

    widths = allocate.widths(teacher.model, rounding)
    guess = teacher.model.width * (budget / cost(teacher.model)) ** _NARROWING
    first = int(np.argmin(np.abs(np.array(widths) - guess)))
    with progress(len(widths), "widths") as bar:
        descend(len(widths), first, lambda at: attempt(widths[at]), bar.advance)
    if not found:
        least = _least_with_more(
            teacher.model, cost, budget, lambda most: [spent_best(width, most) for width in widths]
        )
        raise Infeasible(
            f"nothing within budget {budget:,} keeps a block of this teacher that is worth its cost; a cut that does costs "
            f"{cost(least):,}: give that",
            least,
        )
    return sorted(found.values(), key=lambda candidate: candidate.divergence)


def _least_with_more(
    teacher: ViT, cost: Cost, budget: int, plans: Callable[[int], Sequence[Plan | None]]
) -> ViT:
    """The least model of `plans` within the least of some larger budgets that has one, found by bisection."""
    raised = [int(most) for most in np.geomspace(budget, cost(teacher), _RAISES)[1:-1]]
    with progress(_RAISES.bit_length(), "nearest budget") as bar:

        def keeps(most: int) -> bool:
            bar.advance()
            return any(plans(most))

        first = bisect.bisect_left(raised, True, key=keeps)
    models = [plan.shape_of(teacher) for most in raised[first : first + 1] for plan in plans(most) if plan]
    return min(models, key=cost, default=teacher)


def descend(count: int, start: int, loss: Callable[[int], float], after: Callable[[], None]) -> None:
    """Asks for the loss of `start` of `count` and of its neighbours, downwards while it does not rise, else upwards.

    An infinite loss is one that nothing is known of: below it there may be more, above it there is none.
    """
    first = loss(start)
    after()
    for step, places in ((-1, range(start - 1, -1, -1)), (1, range(start + 1, count))):
        last = first
        for place in places:
            if np.isinf(last) and step > 0:
                break
            here = loss(place)
            after()
            if here > last:
                break
            last = here
        if last < first:
            break  # the least lies on this side


def uniform(
    teacher: Teacher, scores: Scores, cost: Cost, budget: int, rounding: Rounding, judge: Judge
) -> list[Candidate]:
    """The one candidate that keeps the same fraction of everything in every layer, at the teacher's width and depth.

    Raises:
      UserError: as `to_budget`.
    """
    check_budget(teacher.model, cost, budget, rounding)
    plan = allocate.uniform(teacher.model, identity(teacher.model), scores, cost, budget, rounding)
    if plan is None:
        least = allocate.evenly(teacher.model, identity(teacher.model), scores, 1, rounding).shape_of(
            teacher.model
        )
        raise Infeasible(
            f"budget {budget:,} cannot be met by cutting all layers alike, which leaves {cost(least):,} at least: give that, "
            "or --config.search=budget, which also cuts width and depth",
            least,
        )
    return [Candidate("uniform", plan, cost(plan.shape_of(teacher.model)), judge(plan))]


def check_budget(teacher: ViT, cost: Cost, budget: int, rounding: Rounding, name: str = "budget") -> None:
    """Refuses a budget, called `name`, that no cut can meet, or that needs no cut."""
    least, most = min(map(cost, allocate.smallest(teacher, rounding))), cost(teacher)
    if budget > most:
        raise UserError(f"{name} {budget:,} is above the teacher's {most:,}; nothing would be cut: give less")
    if budget < least:
        raise UserError(
            f"{name} {budget:,} is below the {least:,} that the least cut needs; give at least that, or a smaller teacher"
        )
