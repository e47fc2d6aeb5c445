"""Cut and repaired, without a training step: ours by budget search and uniformly, and Torch-Pruning, at the same MACs."""

from typing import Any

from absl import flags

from tools.bench_compression import cuts, record
from tools.bench_compression.bench import Bench
from tools.bench_compression.cuts import Cut
from tools.bench_compression.score import Score

NAME = "one_shot"


def define(values: flags.FlagValues) -> None:
    """The verb's own flags."""
    define_cuts(values)


def define_cuts(values: flags.FlagValues) -> None:
    """The flags that say which cuts are made."""
    flags.DEFINE_list("fractions", ["0.5", "0.25", "0.1"], "MACs to keep.", flag_values=values)
    flags.DEFINE_integer("examples", 1024, "Calibration images.", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "peer_python",
        ".venv-torch/bin/python",
        "Interpreter with Torch-Pruning (make peer); empty leaves it out.",
        flag_values=values,
    )


def run(bench: Bench, flag: dict[str, Any]) -> dict[str, Any]:
    """Makes and evaluates all cuts; returns the record."""
    cuts.require_peer(flag["peer_python"])
    fractions = [float(fraction) for fraction in flag["fractions"]]
    teacher, whole = bench.evaluate("teacher", bench.teacher), bench.shape(bench.teacher)
    found = [
        cuts.ours(bench, fraction, flag["examples"], method)
        for fraction in fractions
        for method in (cuts.OURS, cuts.UNIFORM)
    ]
    found += cuts.peers(bench, fractions, found[0].checkpoint, flag["peer_python"])
    found.sort(key=lambda cut: -cut.fraction)  # stable: methods stay in their order
    series: dict[str, list[record.Point]] = {}
    for cut in found:
        score = cut.score
        point = (100 * cut.macs / whole["macs"], 100 * score.top1, 100 * score.low, 100 * score.high)
        series.setdefault(cut.method, []).append(point)
    path = bench.workdir / f"{NAME}.png"
    record.plot(path, series, ("MACs left, %", "test top-1, %"), ("teacher", 100 * teacher.top1))
    said = {"teacher": {**whole, **vars(teacher)}, "rows": [row(cut, teacher, whole) for cut in found]}
    return record.write(
        NAME, bench.results, bench.workdir, bench.command, said, markdown(teacher, whole, found)
    )


def row(cut: Cut, teacher: Score, whole: dict[str, int]) -> dict[str, Any]:
    """One row of the record."""
    left = {f"{size}_left": getattr(cut, size) / whole[size] for size in ("macs", "params")}
    return {**cut.to_json(), **left, "points_below_teacher": cut.score.below(teacher)}


def markdown(teacher: Score, whole: dict[str, int], found: list[Cut]) -> str:
    """The table."""
    heads = (
        "MACs asked",
        "method",
        "MACs left",
        "parameters left",
        "top-1 % (95 % interval)",
        "points below",
        "seconds of the command",
        "of cutting in it",
    )
    rows: list[tuple[object, ...]] = [("100 %", "teacher", "100 %", "100 %", teacher, "", "", "")]
    for cut in found:
        left = [f"{getattr(cut, size) / whole[size]:.1%}" for size in ("macs", "params")]
        seconds = [f"{value:.0f}" if value else "" for value in (cut.seconds, cut.cutting_seconds)]
        rows.append(
            (f"{cut.fraction:.0%}", cut.method, *left, cut.score, f"{cut.score.below(teacher):.2f}", *seconds)
        )
    title = f"# Cut in one shot, no training step, {teacher.examples:,} test images"
    return f"{title}\n\n{record.table(heads, rows)}"
