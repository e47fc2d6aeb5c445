"""From a budget that must be measured (MiB, latency) to what a search spends, and what says whether it was met."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.command import UserError
from serving.runtime import cpu
from serving.timing.profile import all_cores, this_machine
from serving.timing.turns import Timing
from trainer.compress import allocate, latency, nearest, profiles
from trainer.compress.allocate import Rounding
from trainer.compress.correction import Attempt, Measured, Target, meet, through
from trainer.compress.latency import Setting, Timer, graph_bytes
from trainer.compress.latency_table import CostTable, grid
from trainer.compress.search import Candidate, Infeasible
from trainer.compress.size import file_mib
from trainer.compress.target import sizes_of
from trainer.config.compression import Budget
from trainer.description import ViT, param_count

_MIB = 2**20
_NEAR, _ENOUGH = 0.03, 0.10  # what is aimed at, and what is accepted when rounds or the machine give no more
_ROUNDS = 6
_TINY = 10**9  # whole units of a cost in one of the budget's: picoseconds in a millisecond


@dataclasses.dataclass(frozen=True)
class Goal:
    """At most `asked` of `unit`: `cost` before a model is built, `measure` afterwards; `known` was measured beforehand."""

    name: str
    unit: str
    asked: float
    target: Target
    enough: float  # how far below `asked` is accepted, as a fraction of it
    cost: Callable[[ViT], float]
    measure: Callable[[ViT], Measured]
    known: Sequence[tuple[float, float]]  # (cost, measured) of the least cut and of the teacher
    where: str
    recorded: bool = False  # `measure` reads a profile of another machine

    def predicted(self, model: ViT) -> float:
        """What is expected to be measured, by the two ends alone."""
        return through(self.known, self.asked).at(self.cost(model))

    def spend(self, model: ViT) -> int:
        """The cost as the whole number that a search spends; of equally costly models the one of fewer parameters costs less."""
        return round(self.cost(model) * _TINY) + param_count(model)


def of(budget: Budget, teacher: ViT, rounding: Rounding) -> Goal | None:
    """The goal of a budget that must be measured, None for another; a latency's table is measured here.

    Raises:
      UserError: when no cut of the teacher meets it, or nothing would be cut.
    """
    ends = _ends(teacher, rounding)
    if budget.mib:
        goal = _size(budget, ends)
    elif budget.timed:
        goal = _latency(budget, ends, rounding)
    else:
        return None
    _require_possible(goal.name, goal.unit, goal.asked, [measured for _, measured in goal.known])
    return goal


def _ends(teacher: ViT, rounding: Rounding) -> list[ViT]:
    """The least cut of the teacher, and the teacher."""
    return [min(allocate.smallest(teacher, rounding), key=param_count), teacher]


def _size(budget: Budget, ends: list[ViT]) -> Goal:
    def cost(model: ViT) -> float:
        return file_mib(model, budget.precision)

    def measure(model: ViT) -> Measured:
        return Measured(len(graph_bytes(model, budget.precision)) / _MIB, 0.0)

    known = [(cost(model), measure(model).value) for model in ends]
    target = Target(budget.mib, _NEAR, _ROUNDS)
    return Goal(
        "mib", "MiB", budget.mib, target, 1.0, cost, measure, known, f"exported file, {budget.precision}"
    )


def _latency(budget: Budget, ends: list[ViT], rounding: Rounding) -> Goal:
    name = "latency_p50_ms" if budget.latency_p50_ms else "latency_p99_ms"
    if budget.profile:
        return _recorded(budget, name, ends[-1], rounding)
    asked = getattr(budget, name)
    setting = setting_of(budget)
    under = f"batch {setting.batch}, {setting.threads} threads, {setting.precision}"
    here, in_turns = this_machine(), latency.timer(setting, budget.timing_seconds)
    alone = latency.one_by_one(in_turns)

    def kept(timer: Timer, how: str) -> Timer:
        return profiles.kept(timer, here, setting, profiles.cache_path(here, setting, how))

    def value(timing: Timing) -> Measured:
        return Measured(timing.p50_ms if name == "latency_p50_ms" else timing.p99_ms, timing.spread)

    # Who measures longer, because others use the machine, measures anew.
    long = f"{budget.timing_seconds:g} s"
    taken = [value(timing).value for timing in kept(alone, f"alone, {long}")(ends)]
    # What was kept may have been measured while others used the machine, which only adds.
    if asked < taken[0]:
        taken[0] = min(taken[0], value(*alone(ends[:1])).value)
    _require_possible(name, "ms", asked, taken)  # before minutes go into the table
    cost = CostTable(grid(ends[-1], rounding), kept(in_turns, f"in turns, {long}"))
    known = [(cost(model), measured) for model, measured in zip(ends, taken, strict=True)]
    target = Target(asked, _NEAR, _ROUNDS)
    where = f"{here['cpu']}, {here['runtime']}, {under}"
    return Goal(name, "ms", asked, target, _ENOUGH, cost, lambda model: value(*alone([model])), known, where)


def _recorded(budget: Budget, name: str, teacher: ViT, rounding: Rounding) -> Goal:
    """The goal of a latency on a recorded device: what is `measured` is read from its profile, between its two ends."""
    setting = Setting(budget.batch, budget.threads, budget.precision)
    device = profiles.Device.of(Path(budget.profile), setting)
    _require_cut_of(device, teacher)
    if setting.precision == "int8" and cpu.supports(cpu.INT8) and device.machine["int8"] == "no":
        raise UserError(
            f"int8 as this machine writes it needs a CPU with one of {', '.join(cpu.INT8)}, which the device of {budget.profile} "
            "lacks; compress where the CPU lacks them too, or ask for fp32 or int8_weights"
        )
    cost, ends = CostTable(grid(device.teacher, rounding), device.timer), _ends(device.teacher, rounding)
    known = [
        (cost(model), getattr(timing, name.removeprefix("latency_")))
        for model, timing in zip(ends, device.timer(ends), strict=True)
    ]
    asked = getattr(budget, name)
    line = through(known, asked)
    where = f"{device.machine['cpu']}, {device.machine['runtime']}, read from {budget.profile}"
    return Goal(
        name,
        "ms",
        asked,
        Target(asked, _NEAR, _ROUNDS),
        _ENOUGH,
        cost,
        lambda model: Measured(line.at(cost(model)), 0.0),
        known,
        where,
        recorded=True,
    )


def _require_cut_of(device: profiles.Device, teacher: ViT) -> None:
    """Refuses a teacher that is not the one whose sizes were timed, nor what cutting made of that on the way."""
    for field in ("image_size", "channels", "patch_size", "num_classes", "pooling", "distilled", "gelu"):
        theirs, own = getattr(device.teacher, field), getattr(teacher, field)
        if theirs != own:
            raise _of_another(device, f"has {field} {theirs}, this one {own}")
    stems = [one.stem and (one.stem.width, one.stem.stages) for one in (device.teacher, teacher)]
    if stems[0] != stems[1]:
        raise _of_another(device, f"has a stem of width and stages {stems[0]}, this one {stems[1]}")
    has, timed = (dataclasses.asdict(sizes_of(one)) for one in (teacher, device.teacher))
    for name, size in has.items():
        if size > timed[name]:
            raise _of_another(device, f"has {name} {timed[name]}, this one {size}")


def _of_another(device: profiles.Device, what: str) -> UserError:
    return UserError(f"profile {device.path} is of a teacher that {what}; write the kit from this teacher")


def timed_models(teacher: ViT, rounding: Rounding) -> list[ViT]:
    """Everything that a latency budget of `teacher` needs timed, without repetition."""
    return list(dict.fromkeys([*grid(teacher, rounding).models(), *_ends(teacher, rounding)]))


def setting_of(budget: Budget) -> Setting:
    """Under what a latency is measured on this machine."""
    return Setting(budget.batch, budget.threads or all_cores(), budget.precision)


def _require_possible(name: str, unit: str, asked: float, ends: Sequence[float]) -> None:
    """Refuses what is not between what the least cut and the teacher take, the `ends`."""
    (least, most), said = ends, f"budget.{name}={asked:g}"
    # What is timed again is never the same: with so much room a search comes near enough.
    possible = least * (1 + _NEAR) if unit == "ms" else least
    if asked < least:
        raise UserError(
            f"{said} is below the {nearest.at_least(possible)} {unit} that the least cut needs; give at least that, or a smaller "
            "teacher"
        )
    if asked >= most:
        raise UserError(
            f"{said} is not below the teacher's {nearest.at_most(most)} {unit}; nothing would be cut: give less"
        )


def reach(
    goal: Goal, teacher: ViT, search: Callable[[int], list[Candidate]]
) -> tuple[list[Candidate], dict[str, object]]:
    """The candidates of the last search, and what was asked, predicted and measured.

    Raises:
      UserError: when no round came near enough, naming the nearest.
    """
    most = goal.spend(teacher)

    def within(limit: float) -> list[Candidate]:
        try:
            return search(min(round(limit * _TINY) + param_count(teacher), most))
        except Infeasible as error:
            raise UserError(
                f"budget.{goal.name}={goal.asked:g} is less than this search can cut to: its least cut takes "
                f"{nearest.at_least(goal.measure(error.least).value)} {goal.unit}; give more than that"
            ) from error

    def shape(found: list[Candidate]) -> ViT:
        return found[0].plan.shape_of(teacher)

    attempts = meet(
        goal.target,
        goal.known,
        within,
        lambda found: goal.cost(shape(found)),
        lambda found: goal.measure(shape(found)),
    )
    best = attempts[-1]
    reached = best.measured.value / goal.asked
    if not 1 - goal.enough <= reached <= 1:
        raise UserError(
            f"budget.{goal.name}={goal.asked:g} was not met in {len(attempts)} searches, which gave {_said(attempts)} {goal.unit}: "
            f"the nearest has {param_count(shape(best.found)):,} parameters and takes {best.measured.value:.4g} {goal.unit}; "
            f"{_way_out(goal, best.measured.value)}"
        )
    return best.found, _record(goal, attempts)


def _said(attempts: list[Attempt[list[Candidate]]]) -> str:
    return ", ".join(f"{one.measured.value:.4g}" for one in attempts)


def _way_out(goal: Goal, measured: float) -> str:
    if goal.recorded or goal.unit != "ms":
        return f"ask {nearest.at_least(measured)}"
    return (
        f"ask {nearest.at_least(measured * (1 + _NEAR))}, with room for noise, or give budget.timing_seconds more where others use "
        "the machine as well"
    )


def _record(goal: Goal, attempts: list[Attempt[list[Candidate]]]) -> dict[str, object]:
    best = attempts[-1]
    return {
        "name": goal.name,
        "asked": goal.asked,
        "predicted": best.predicted,
        "measured": best.measured.value,
        "spread": best.measured.spread,
        "searches": len(attempts),
        "attempts": [[one.predicted, one.measured.value] for one in attempts],
        "where": goal.where,
        "recorded": goal.recorded,
    }
