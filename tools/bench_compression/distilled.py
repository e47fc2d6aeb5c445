"""After the same number of distillation steps from the same teacher: our cut, the peer's best, our shape from random weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from tools.bench_compression import cuts, record
from tools.bench_compression.bench import Bench
from tools.bench_compression.one_shot import define_cuts
from tools.bench_compression.score import Score

NAME = "distilled"
RANDOM = "the shape of ours, random weights"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training begins from: the flag that says so, its cost, and its accuracy before (None: untrained)."""

    method: str
    name: str
    flag: str
    macs: int
    params: int
    before: Score | None


@dataclasses.dataclass(frozen=True)
class Trained:
    """One row: the start, with the learning rate that validation liked best, and test accuracy after."""

    start: Start
    fraction: float
    learning_rate: float
    tried: dict[str, float]  # validation top-1 by learning rate
    score: Score


def define(values: flags.FlagValues) -> None:
    """The verb's own flags."""
    define_cuts(values)
    flags.DEFINE_integer("steps", 600, "Steps of every training.", lower_bound=2, flag_values=values)
    flags.DEFINE_list(
        "learning_rates",
        ["0.0005", "0.001"],
        "Tried for every start; the best on validation images counts.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "recipe", "", "Recipe of every training; the data set's student when empty.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "set", [], "key=value of the recipe to change in every training; may be repeated.", flag_values=values
    )


def run(bench: Bench, flag: dict[str, Any]) -> dict[str, Any]:
    """Cuts (or takes the cuts of `one_shot` in the same workdir), trains, evaluates; returns the record."""
    cuts.require_peer(flag["peer_python"])
    fractions = [float(fraction) for fraction in flag["fractions"]]
    ours = [cuts.ours(bench, fraction, flag["examples"]) for fraction in fractions]
    peers = cuts.peers(bench, fractions, ours[0].checkpoint, flag["peer_python"])
    teacher, whole = bench.evaluate("teacher", bench.teacher), bench.shape(bench.teacher)
    found = [
        _trained(bench, start, own.fraction, flag)
        for own in ours
        for start in starts(own, [cut for cut in peers if cut.fraction == own.fraction])
    ]
    series: dict[str, list[record.Point]] = {}
    for one in found:
        points = (100 * value for value in (one.score.top1, one.score.low, one.score.high))
        top1, low, high = points
        left = 100 * one.start.macs / whole["macs"]
        series.setdefault(one.start.method, []).append((left, top1, low, high))
    label = f"test top-1 after {flag['steps']} steps, %"
    path = bench.workdir / f"{NAME}.png"
    record.plot(path, series, ("MACs left, %", label), ("teacher", 100 * teacher.top1))
    said = {
        "teacher": {**whole, **vars(teacher)},
        "steps": flag["steps"],
        "rows": [
            {**dataclasses.asdict(one), "points_below_teacher": one.score.below(teacher)} for one in found
        ],
    }
    text = markdown(teacher, whole, flag["steps"], found)
    return record.write(NAME, bench.results, bench.workdir, bench.command, said, text)


def starts(ours: cuts.Cut, peers: Sequence[cuts.Cut]) -> list[Start]:
    """Ours; of the peer's cuts the one that is best on the test images, which favours the peer; and ours without its weights."""
    found = [_cut_start(ours, f"distilled-{ours.fraction:g}-ours")]
    if peers:
        best = max(peers, key=lambda cut: cut.score.top1)
        found.append(
            dataclasses.replace(
                _cut_start(best, f"distilled-{ours.fraction:g}-peer"), method=f"{cuts.PEER}, its best"
            )
        )
    shape = f"--config.shape_of={ours.checkpoint}"
    return [*found, Start(RANDOM, f"distilled-{ours.fraction:g}-random", shape, ours.macs, ours.params, None)]


def _cut_start(cut: cuts.Cut, name: str) -> Start:
    pretrained = f"--config.pretrained={cut.checkpoint}"
    return Start(cut.method, name, pretrained, cut.macs, cut.params, cut.score)


def _trained(bench: Bench, start: Start, fraction: float, flag: dict[str, Any]) -> Trained:
    """The start trained with every learning rate; all else is equal for all starts."""
    recipe, steps = flag["recipe"] or f"configs/{bench.dataset}.py:student", flag["steps"]
    tried, made = {}, {}
    for rate in flag["learning_rates"]:
        name = f"{start.name}-{float(rate):g}"
        made[rate] = bench.train(
            name,
            recipe,
            start.flag,
            f"--config.teacher_weights={bench.teacher}",
            f"--config.total_steps={steps}",
            f"--config.warmup_steps={steps // 10}",
            f"--config.base_lr={float(rate):g}",
            *(f"--config.{change}" for change in flag["set"]),
        )
        tried[rate] = bench.evaluate(name, made[rate], "validation").top1
    best = max(tried, key=lambda rate: tried[rate])
    score = bench.evaluate(f"{start.name}-{float(best):g}", made[best])
    return Trained(start, fraction, float(best), tried, score)


def markdown(teacher: Score, whole: dict[str, int], steps: int, found: Sequence[Trained]) -> str:
    """The table."""
    heads = (
        *("MACs asked", "start", "MACs left", "parameters left", "before, %"),
        *(f"after {steps} steps, top-1 % (95 % interval)", "points below the teacher", "learning rate"),
    )
    rows = []
    for one in found:
        before = "" if one.start.before is None else f"{100 * one.start.before.top1:.2f}"
        left = [f"{getattr(one.start, size) / whole[size]:.1%}" for size in ("macs", "params")]
        below = f"{one.score.below(teacher):.2f}"
        rows.append(
            (
                f"{one.fraction:.0%}",
                one.start.method,
                *left,
                before,
                one.score,
                below,
                f"{one.learning_rate:g}",
            )
        )
    title = (
        f"# Distilled for {steps} steps each; the teacher has {teacher} % on {teacher.examples:,} test images"
    )
    return f"{title}\n\n{record.table(heads, rows)}"
