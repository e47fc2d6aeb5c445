"""The student beside its teacher, both served by one server: MiB, images/s in paired rounds, accuracy of what is served."""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from serving import preprocess
from serving.client import VisionClient
from serving.command import UserError
from tools import report, serving_load
from tools.bench_compression import record
from tools.bench_compression.bench import Bench
from tools.bench_compression.score import Score, paired_drop
from tools.serving_load import Ask, Load
from tools.serving_process import serving
from trainer.precisions import PRECISIONS

NAME = "headline"
TEACHER = "teacher"
_WAYS = {"classify": "PNG bytes through Vision/Classify", "infer": "float32 tensors through ModelInfer"}
_REPOSITORY = "served"  # nothing else may lie there: the server would load it
_IMAGES = 512  # that are asked for over and over


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(rounds: Sequence[dict[str, float]], of: str, to: str) -> Ratio:
    """How many times the images/s of `to` the model `of` gave, each round by itself: a slow spell hits both."""
    found = [one[of] / one[to] for one in rounds]
    return Ratio(statistics.median(found), min(found), max(found))


def define(values: flags.FlagValues) -> None:
    """The verb's own flags."""
    flags.DEFINE_string("student", None, "The student's checkpoint.", flag_values=values)
    flags.DEFINE_list(
        "precision",
        list(PRECISIONS),
        "Precisions to export the student in; each is a row.",
        flag_values=values,
    )
    flags.DEFINE_integer("concurrency", 4, "Callers at a time.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "images_per_request", 32, "Images in one request.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float("window_s", 2.0, "Seconds of load per model and round.", flag_values=values)
    flags.DEFINE_integer(
        "rounds", 9, "Rounds, each of all models in turn.", lower_bound=1, flag_values=values
    )


def run(bench: Bench, flag: dict[str, Any]) -> dict[str, Any]:
    """Exports, serves, asks and measures; returns the record."""
    if not flag["student"]:
        raise UserError("headline needs --student, the checkpoint that is compared with --teacher")
    exported = {TEACHER: bench.export(_REPOSITORY, TEACHER, bench.teacher, "fp32")}
    for precision in flag["precision"]:
        exported[f"student-{precision}"] = bench.export(
            _REPOSITORY, f"student-{precision}", flag["student"], precision
        )
    load = Load(flag["concurrency"], flag["images_per_request"], flag["window_s"], rounds=flag["rounds"])
    pictures, labels = report.test_images(bench.dataset, bench.data_dir)
    with serving(bench.workdir / _REPOSITORY, bench.stop) as address, VisionClient(address) as client:
        print("\n== accuracy: the test images as PNG bytes through Vision/Classify", file=sys.stderr)
        said = {name: serving_load.predictions(client, name, pictures) for name in exported}
        right = {
            name: [found == label for found, label in zip(answers, labels, strict=True)]
            for name, answers in said.items()
        }
        asking = _ways(client, pictures[:_IMAGES], _tensors(bench))
        speeds = {}
        for way, ask in asking.items():
            print(f"\n== speed: {_WAYS[way]}", file=sys.stderr)
            speeds[way] = serving_load.rounds(ask, list(exported), min(_IMAGES, len(pictures)), load)
    rows = [_row(name, exported, right, speeds) for name in exported]
    return _write(bench, load, rows)


def _tensors(bench: Bench) -> np.ndarray:
    """Test images (B, H, W, C) as the teacher's bundle wants them; the student's wants the same."""
    from trainer.checkpoint import load_card
    from trainer.data.datasets import open_dataset

    spec = load_card(bench.teacher).preprocess
    images = open_dataset(bench.dataset, bench.data_dir).test.images[:_IMAGES]
    return preprocess.prepare_pixels(images, spec)


def _ways(client: VisionClient, pictures: Sequence[bytes], tensors: np.ndarray) -> dict[str, Ask]:
    def classify(model: str, chosen: Sequence[int]) -> object:
        return client.classify([pictures[index] for index in chosen], model=model, top_k=1)

    def infer(model: str, chosen: Sequence[int]) -> object:
        return client.infer(model, tensors[np.asarray(chosen)])

    ways: dict[str, Callable[[str, Sequence[int]], object]] = {"classify": classify, "infer": infer}
    return ways


def _row(
    name: str,
    exported: dict[str, dict[str, Any]],
    right: dict[str, list[bool]],
    speeds: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    mib = exported[name]["mib"]
    score = Score.counted(sum(right[name]), len(right[name]))
    found = {
        "model": name,
        "precision": exported[name].get("precision", ""),
        "params": exported[name]["params"],
        "macs": exported[name]["macs"],
        "mib": mib,
        "mib_less": 1 - mib / exported[TEACHER]["mib"],
        "score": dataclasses.asdict(score),
        "drop": dataclasses.asdict(paired_drop(right[TEACHER], right[name])),
    }
    for way, rounds in speeds.items():
        rates = [one[name] for one in rounds]
        found[way] = {
            "images_per_s": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "times_the_teacher": dataclasses.asdict(ratio(rounds, name, TEACHER)),
        }
    return found


def _write(bench: Bench, load: Load, rows: list[dict[str, Any]]) -> dict[str, Any]:
    series = {}
    for row in rows:
        score = Score(**row["score"])
        series[row["model"]] = [
            (row["classify"]["images_per_s"], 100 * score.top1, 100 * score.low, 100 * score.high)
        ]
    path = bench.workdir / f"{NAME}.png"
    labels = (f"images/s, {_WAYS['classify']}", "test top-1, %")
    record.plot(path, series, labels, (TEACHER, 100 * rows[0]["score"]["top1"]))
    said = {
        "load": dataclasses.asdict(load),
        "ways": _WAYS,
        "client": "serving.client.VisionClient",
        "rows": rows,
    }
    return record.write(NAME, bench.results, bench.workdir, bench.command, said, markdown(load, rows))


def markdown(load: Load, rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    heads = (
        *("model", "MiB", "MiB less", "images/s, Classify", "times the teacher (low to high)"),
        *("images/s, ModelInfer", "times the teacher (low to high)"),
        *("top-1 % (95 % interval)", "points lost (95 % interval, paired)"),
    )
    cells = []
    for row in rows:
        speeds: list[object] = []
        for way in _WAYS:
            speeds += [f"{row[way]['images_per_s']:.0f}", Ratio(**row[way]["times_the_teacher"])]
        lost = f"{row['drop']['points']:.2f} ({row['drop']['low']:.2f} to {row['drop']['high']:.2f})"
        size = (f"{row['mib']:.3f}", f"{row['mib_less']:.1%}")
        cells.append((row["model"], *size, *speeds, Score(**row["score"]), lost))
    examples = rows[0]["score"]["examples"]
    return "\n".join(
        [
            f"# Served by one server, {examples:,} test images",
            "",
            record.table(heads, cells),
            "",
            f"{load.concurrency} callers, {load.images_per_request} images a request, {load.rounds} rounds of "
            f"{load.window_s:g} s for each model in turn; ratios are of one round each, their median and extremes. "
            f"Classify: {_WAYS['classify']}; ModelInfer: {_WAYS['infer']}; both with Vitforge's own client, on the "
            "same machine.",
        ]
    )
