"""Latency budgets: asked for, and what the shipped model takes when a new process measures it on the serving runtime."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from serving.bundle import read_bundle
from serving.command import ExitCode, UserError
from tools.bench_compression import record
from tools.bench_compression.bench import Bench
from tools.bench_compression.score import Score
from trainer.precisions import PRECISIONS

NAME = "latency"
_AUTO = "auto"
_COUNT = 5
_NEAR = 0.10  # below what was asked, at most


@dataclasses.dataclass(frozen=True)
class Met:
    """One budget: asked and measured p50 in ms, their ratio, and the accuracy of the shipped file; `median_ms` is of all rounds."""

    asked_ms: float
    measured_ms: float
    median_ms: float
    spread: float
    params: int
    macs: int
    score: Score

    @property
    def ratio(self) -> float:
        """Measured over asked."""
        return self.measured_ms / self.asked_ms

    @property
    def within(self) -> bool:
        """Whether it is at most what was asked, and at least nine tenths of it."""
        return 1 - _NEAR <= self.ratio <= 1


def spread_between(least: float, most: float, count: int = _COUNT) -> list[float]:
    """`count` budgets at equal ratios strictly between `least` and `most`, rounded to three digits."""
    return [float(f"{least * (most / least) ** ((i + 1) / (count + 1)):.3g}") for i in range(count)]


def define(values: flags.FlagValues) -> None:
    """The verb's own flags."""
    flags.DEFINE_list(
        "budgets", [_AUTO], f"p50 in ms; auto: {_COUNT} below the teacher's.", flag_values=values
    )
    flags.DEFINE_integer("batch", 1, "Images in a call.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("precision", "fp32", list(PRECISIONS), "Of the shipped file.", flag_values=values)
    flags.DEFINE_float(
        "seconds",
        30.0,
        "Of every timing: the search's, and the one afresh.",
        lower_bound=0.1,
        flag_values=values,
    )
    flags.DEFINE_integer("examples", 1024, "Calibration images.", lower_bound=1, flag_values=values)
    flags.DEFINE_multi_string(
        "set", [], "key=value of the compression's recipe to change; may be repeated.", flag_values=values
    )


def run(bench: Bench, flag: dict[str, Any]) -> dict[str, Any]:
    """Compresses to every budget and measures what is shipped; returns the record."""
    ends = bench.steps.run(
        "latency ends",
        "tools.bench_compression.latency_ends",
        f"--teacher={bench.teacher}",
        f"--batch={flag['batch']}",
        f"--threads={flag['threads']}",
        f"--precision={flag['precision']}",
        f"--seconds={flag['seconds']:g}",
    )
    budgets = spread_between(ends["least_ms"], ends["teacher_ms"])
    if flag["budgets"] != [_AUTO]:
        budgets = [float(budget) for budget in flag["budgets"]]
    if not budgets:
        raise UserError(f"--budgets names none; give p50s in ms, or {_AUTO}")
    teacher = bench.evaluate("teacher", bench.teacher)
    found = [_met(bench, budget, flag) for budget in budgets]
    points = [
        (one.measured_ms, 100 * one.score.top1, 100 * one.score.low, 100 * one.score.high) for one in found
    ]
    path, labels = bench.workdir / f"{NAME}.png", ("p50 of the shipped model, ms", "test top-1, %")
    record.plot(path, {"shipped": points}, labels, ("teacher", 100 * teacher.top1))
    rows = [{**dataclasses.asdict(one), "ratio": one.ratio, "within": one.within} for one in found]
    setting = {name: flag[name] for name in ("batch", "threads", "precision", "seconds")}
    said = {"ends": ends, "setting": setting, "teacher": vars(teacher), "rows": rows}
    text = markdown(teacher, ends["teacher_ms"], setting, found)
    return record.write(NAME, bench.results, bench.workdir, bench.command, said, text)


def _met(bench: Bench, budget: float, flag: dict[str, Any]) -> Met:
    name = f"latency-{budget:g}"
    target = bench.workdir / name
    setting = {name: flag[name] for name in ("batch", "threads", "precision")}
    before = _reported(target)
    try:
        bench.compress(
            name,
            f"--config.budget.latency_p50_ms={budget:g}",
            *(f"--config.budget.{key}={value}" for key, value in setting.items()),
            f"--config.budget.timing_seconds={flag['seconds']:g}",
            f"--config.calibration.examples={flag['examples']}",
            *(f"--config.{change}" for change in flag["set"]),
        )
    except UserError as error:  # a budget that what was shipped misses is a row as well
        if error.exit_code != ExitCode.BAD_INPUT or _reported(target) == before:
            raise
    bundle = _shipped(bench, name, target, flag["precision"])
    given = [f"--data_dir={bench.data_dir}"] if bench.data_dir else []
    said = bench.steps.run(
        f"{name}, {_digest(bundle)[:12]}, afresh",  # a budget that was missed is tried again, and gives another file
        "tools.bench_compression.shipped",
        f"--bundle={bundle}",
        f"--dataset={bench.dataset}",
        f"--batch={flag['batch']}",
        f"--threads={flag['threads']}",
        f"--seconds={flag['seconds']:g}",
        *given,
    )
    score = Score.counted(said["correct"], said["examples"])
    return Met(budget, said["p50_ms"], said["median_ms"], said["spread"], said["params"], said["macs"], score)


def _reported(target: Path) -> int:
    """When the compression in `target` came to its end and told what it shipped, ns; 0: not yet."""
    report = target / "report.json"
    return report.stat().st_mtime_ns if report.is_file() else 0


def _bundles(target: Path) -> list[Path]:
    return sorted(path.parent for path in (target / "models").glob("*/*/manifest.json"))


def _digest(bundle: Path) -> str:
    content = read_bundle(bundle)
    return content.manifest.digests[content.model_file()[0].file].removeprefix("sha256:")


def _shipped(bench: Bench, name: str, target: Path, precision: str) -> Path:
    """The bundle that the compression shipped; where it ends with a checkpoint, that one exported."""
    if bundles := _bundles(target):
        return bundles[0]
    bundle = bench.export("models", name, target, precision)["bundle"]
    return Path(bundle)


def markdown(teacher: Score, teacher_ms: float, setting: dict[str, Any], found: Sequence[Met]) -> str:
    """The table."""
    heads = (
        "asked p50, ms",
        "measured p50, ms",
        "measured / asked",
        "within -10 % and 0",
        "median of all rounds, ms",
        "MMACs",
        "top-1 % (95 % interval)",
    )
    rows = [
        (
            f"{one.asked_ms:g}",
            f"{one.measured_ms:.3g}",
            f"{one.ratio:.3f}",
            "yes" if one.within else "**no**",
            f"{one.median_ms:.3g}",
            f"{one.macs / 1e6:.2f}",
            one.score,
        )
        for one in found
    ]
    under = f"batch {setting['batch']}, {setting['threads']} threads, {setting['precision']}"
    title = f"# Latency budgets ({under}); the teacher takes {teacher_ms:.3g} ms and has {teacher} %"
    return f"{title}\n\n{record.table(heads, rows)}"
