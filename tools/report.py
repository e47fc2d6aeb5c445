"""The answer of the quickstart for people and for programs: a table, plots, results.json."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tools import machine
from tools.serving_load import Load, Speed
from trainer.data.datasets import open_dataset
from trainer.interval import wilson


@dataclasses.dataclass(frozen=True)
class Row:
    """One served model: what it is, what it costs, what it answers. top1 and its 95 % interval are fractions."""

    stage: str
    model: str
    precision: str
    params: int
    mib: float  # of the model file that was served
    macs: int
    images_per_s: float
    images_per_s_low: float
    images_per_s_high: float
    p50_ms: float
    client_cpu_share: float
    top1: float
    top1_low: float
    top1_high: float
    examples: int

    @staticmethod
    def of(
        stage: str, precision: str, exported: dict[str, Any], correct: int, examples: int, speed: Speed
    ) -> "Row":
        """From what the exporter, the client and the benchmark said."""
        low, high = wilson(correct / examples, examples)
        return Row(
            stage=stage,
            model=Path(exported["bundle"]).parent.name,
            precision=precision,
            params=exported["params"],
            mib=exported["mib"],
            macs=exported["macs"],
            images_per_s=round(speed.images_per_s, 1),
            images_per_s_low=round(speed.images_per_s_low, 1),
            images_per_s_high=round(speed.images_per_s_high, 1),
            p50_ms=round(speed.p50_ms, 2),
            client_cpu_share=round(speed.client_cpu_share, 2),
            top1=correct / examples,
            top1_low=low,
            top1_high=high,
            examples=examples,
        )

    def to_json(self) -> dict[str, Any]:
        """One row of results.json."""
        return dataclasses.asdict(self)


def test_images(dataset: str, data_dir: str) -> tuple[list[bytes], list[int]]:
    """The held-out test images as PNG bytes, as a camera's program would send them, and their labels."""
    test = open_dataset(dataset, data_dir).test
    return [_png(image) for image in test.images], [int(label) for label in test.labels]


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def write(workdir: Path, dataset: str, rows: list[Row], load: Load, seconds: dict[str, float]) -> str:
    """Writes results.json, report.md and the plots; returns the report's text."""
    (workdir / "results.json").write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    plot(workdir / "accuracy_against_size.png", rows, "mib", "model file, MiB")
    plot(workdir / "accuracy_against_speed.png", rows, "images_per_s", "images/s through the server")
    text = markdown(dataset, rows, load, seconds)
    (workdir / "report.md").write_text(
        text + "\n![accuracy against size](accuracy_against_size.png)\n\n"
        "![accuracy against speed](accuracy_against_speed.png)\n"
    )
    return text


def markdown(dataset: str, rows: list[Row], load: Load, seconds: dict[str, float]) -> str:
    """The report as Markdown."""
    lines = [
        f"# {dataset}: {rows[0].examples} held-out test images, sent as PNG bytes through Vision/Classify",
        "",
        "| stage | precision | parameters | MiB | MMACs | images/s (low to high) | p50 ms | top-1 % (95 % interval) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in rows),
        "",
        f"images/s: {load.concurrency} callers, {load.images_per_request} images a request, median of {load.rounds} rounds of "
        f"{load.window_s:g} s; p50: one caller, one image a request. The client ran on the same machine and took "
        f"{min(row.client_cpu_share for row in rows):.2f} to {max(row.client_cpu_share for row in rows):.2f} of a core.",
        f"Machine: {machine.text()}.",
        "Seconds: " + ", ".join(f"{name} {value:g}" for name, value in seconds.items()) + ".",
        "",
        *(f"- {remark}" for remark in remarks(rows)),
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    return (
        f"| {row.stage} | {row.precision} | {row.params:,} | {row.mib:.3f} | {row.macs / 1e6:.2f} "
        f"| {row.images_per_s:.0f} ({row.images_per_s_low:.0f} to {row.images_per_s_high:.0f}) | {row.p50_ms:.2f} "
        f"| {100 * row.top1:.2f} ({100 * row.top1_low:.2f} to {100 * row.top1_high:.2f}) |"
    )


def remarks(rows: list[Row]) -> list[str]:
    """What the table says in words, the unwelcome too."""
    by_stage = {row.stage: row for row in rows}
    teacher, pruned, student = by_stage["teacher"], by_stage["pruned"], by_stage["distilled"]
    int8, scratch = by_stage["distilled int8"], by_stage["scratch"]
    size = f"{student.params / teacher.params:.1%} of the teacher's parameters and {student.macs / teacher.macs:.1%} of its MACs"
    return [
        f"The student has {size}; its top-1 is {_points(student, teacher)} the teacher's.",
        f"Cut and repaired, before any training step, top-1 was {_points(pruned, teacher)} the teacher's.",
        f"The same shape trained from scratch for the same number of steps is {_points(scratch, student)} the student's"
        + (
            "."
            if scratch.top1 < student.top1
            else ": **on this data scratch training does as well or better**."
        ),
        _speed(int8, student, "int8", "fp32"),
        _speed(student, teacher, "the student", "the teacher"),
    ]


def _points(one: Row, other: Row) -> str:
    points = 100 * (one.top1 - other.top1)
    overlap = one.top1_low <= other.top1_high and other.top1_low <= one.top1_high
    sure = " (the intervals overlap)" if overlap and points else ""
    return (
        "equal to" if points == 0 else f"{abs(points):.2f} points {'above' if points > 0 else 'below'}{sure}"
    )


def _speed(one: Row, other: Row, name: str, other_name: str) -> str:
    ratio = one.images_per_s / other.images_per_s
    if one.images_per_s_low > other.images_per_s_high:
        return f"Served, {name} gives {ratio:.2f} times the images/s of {other_name}."
    if one.images_per_s_high < other.images_per_s_low:
        return f"Served, {name} is **slower** than {other_name} here: {ratio:.2f} times its images/s."
    return f"Served, {name} and {other_name} are equally fast within this measurement's spread ({ratio:.2f} times the images/s)."


def plot(path: Path, rows: list[Row], column: str, label: str) -> None:
    """Top-1 with its interval against `column`, one point a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        top1, low, high = (100 * value for value in (row.top1, row.top1_low, row.top1_high))
        axes.errorbar(
            getattr(row, column),
            top1,
            yerr=[[top1 - low], [high - top1]],
            fmt="o",
            capsize=3,
            label=row.stage,
        )
    axes.set(xlabel=label, ylabel=f"top-1 on {rows[0].examples} test images, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
