"""The main job on real images, end to end: train, cut, distil, export, serve, measure. Each step is a command of its own.

    python -m tools.quickstart [--dataset=digits|fashion_mnist] [--data_dir=DIR] [--workdir=runs/quickstart] [--fresh]

Writes results.json, report.md and plots under the workdir, and its bundles in WORKDIR/models/NAME/1. Run again, it goes on with
the first step that is not done. SIGTERM and Ctrl-C reach the step that runs, which saves its state; the exit code is the step's.
"""

import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from serving import command, installation
from serving.client import VisionClient
from serving.command import UserError
from tools import serving_load
from tools.serving_process import serving
from tools.steps import GOES_ON, Result, Steps, compiling_once
from tools.stop_requests import Stopped, StopRequests
from trainer.workdir import hold

_DATASETS = ("digits", "fashion_mnist")
_MARK = ".quickstart"  # holds the name of the data set


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the answer: a stage of the job, the workdir of its model, and the bundle it is served from."""

    stage: str
    trained_in: str
    bundle: str
    precision: str = "fp32"


VARIANTS = (
    Variant("teacher", "teacher", "teacher"),
    Variant("pruned", "pruned", "pruned"),
    Variant("distilled", "student", "student"),
    Variant("distilled int8", "student", "student-int8", "int8"),
    Variant("scratch", "scratch", "scratch"),
)


def main(argv: list[str]) -> dict[str, object]:
    """Runs the main job; the result names the report and repeats its rows."""
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "dataset", "digits", _DATASETS, "The images: digits come with the installation.", flag_values=values
    )
    flags.DEFINE_string("data_dir", "", "Folder of the IDX files of fashion_mnist.", flag_values=values)
    flags.DEFINE_string(
        "workdir", "runs/quickstart", "Folder of everything this job writes.", flag_values=values
    )
    flags.DEFINE_bool("fresh", False, "Remove the workdir first and start again.", flag_values=values)
    extra = command.parse_flags(values, argv)
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r} (see --help)")
    workdir, dataset = Path(values["workdir"].value), values["dataset"].value
    _claim(workdir, dataset, values["fresh"].value)
    try:
        with StopRequests() as stop, hold(workdir, "running a quickstart"):
            return quickstart(dataset, values["data_dir"].value, workdir, stop)
    except Stopped as stopped:
        raise UserError(f"{stopped.number.name}: stopped; {GOES_ON}", 128 + stopped.number) from None


def _claim(workdir: Path, dataset: str, fresh: bool) -> None:
    """Makes the workdir ours by a mark of our own; only what bears it is ever removed.

    Raises:
      UserError: for a file, or a folder that holds something else or the job on another data set.
    """
    command.require_folder(workdir, "--workdir")
    if workdir.exists() and any(workdir.iterdir()) and not (workdir / _MARK).is_file():
        raise UserError(
            f"--workdir={workdir} holds something that no quickstart has written; give another folder"
        )
    if fresh:
        _remove(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / _MARK).touch()
    holds = (workdir / _MARK).read_text().strip() or dataset
    if holds != dataset:
        raise UserError(
            f"--workdir={workdir} holds the job on {holds}; for {dataset} give another --workdir, or --fresh to "
            "remove what is there"
        )
    (workdir / _MARK).write_text(dataset + "\n")


def _remove(workdir: Path) -> None:
    if workdir.exists():
        with hold(workdir, "running a quickstart"):  # nobody's work is removed under them
            shutil.rmtree(workdir, ignore_errors=True)


def quickstart(dataset: str, data_dir: str, workdir: Path, stop: StopRequests) -> dict[str, object]:
    """The whole job; see the module."""
    installation.require("train,serve")
    # Not above: a smaller installation says in one line that it lacks what these need.
    from tools import report
    from tools.report import Row

    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vitforge-compiled-") as compiled:
        steps = Steps(workdir, stop, compiling_once(compiled))
        exported = _make_models(steps, dataset, data_dir, workdir)
    images, labels = report.test_images(dataset, data_dir)
    load = serving_load.Load()
    with serving(workdir / "models", stop) as address, VisionClient(address) as client:
        names = [variant.bundle for variant in VARIANTS]
        print("\n== accuracy: the test images as PNG bytes through Vision/Classify", file=sys.stderr)
        correct = {}
        with command.progress(len(names), "asking") as bar:
            for name in names:
                correct[name] = _correct(client, name, images, labels)
                bar.advance(note=name)
        print("\n== speed: through the same server", file=sys.stderr)
        speeds = serving_load.measure(client, names, images[:256], load)
    rows = [
        Row.of(
            variant.stage,
            variant.precision,
            exported[variant.bundle],
            correct[variant.bundle],
            len(labels),
            speeds[variant.bundle],
        )
        for variant in VARIANTS
    ]
    steps.seconds["in all"] = round(time.monotonic() - began_s, 1)
    text = report.write(workdir, dataset, rows, load, steps.seconds)
    print(f"\n{text}\n{_what_next(workdir, dataset, data_dir)}", file=sys.stderr)
    return {
        "workdir": str(workdir),
        "seconds": steps.seconds["in all"],
        "results": [row.to_json() for row in rows],
    }


def _what_next(workdir: Path, dataset: str, data_dir: str) -> str:
    """Where everything lies, and commands that go on from here."""
    image, source = workdir / "image.png", f"{dataset!r}, {data_dir!r}"
    made = f"from tools import report; open({str(image)!r}, 'wb').write(report.test_images({source})[0][0])"
    return "\n".join(
        [
            f"Report: {workdir / 'report.md'}, its plots beside it, and the same for programs in results.json.",
            f"Bundles: {workdir / 'models'}/NAME/1. Serve them, and ask from another shell what a test image shows:",
            "",
            f"    python -m serving.main --model_repository={workdir / 'models'} --port=8001",
            f'    python -c "{made}"',
            f"    python -m serving.client --server=localhost:8001 --model=student {image}",
        ]
    )


def _make_models(steps: Steps, dataset: str, data_dir: str, workdir: Path) -> dict[str, Result]:
    """Trains, cuts, distils and exports; returns the exporter's result by bundle."""
    at = {name: str(workdir / name) for name in ("teacher", "pruned", "student", "scratch")}
    recipe, data = f"configs/{dataset}.py", [f"--config.data_dir={data_dir}"] if data_dir else []

    def train(name: str, *arguments: str) -> None:
        steps.run(
            name, "trainer.main", f"--config={recipe}:{name}", f"--workdir={at[name]}", *arguments, *data
        )

    train("teacher")
    cutting = (
        f"--checkpoint={at['teacher']}",
        f"--config=configs/compress.py:{dataset}",
        f"--workdir={at['pruned']}",
        "--config.until=cut",
    )
    steps.run("pruned", "trainer.compress", *cutting, *data)
    train("student", f"--config.pretrained={at['pruned']}", f"--config.teacher_weights={at['teacher']}")
    train("scratch", f"--config.shape_of={at['pruned']}")
    return {
        variant.bundle: steps.run(
            f"export {variant.bundle}",
            "trainer.export",
            f"--checkpoint={at[variant.trained_in]}",
            f"--output={workdir / 'models' / variant.bundle / '1'}",
            f"--precision={variant.precision}",
            makes=workdir / "models" / variant.bundle / "1",
        )
        for variant in VARIANTS
    }


def _correct(client: VisionClient, model: str, images: Sequence[bytes], labels: Sequence[int]) -> int:
    return sum(
        found == label
        for found, label in zip(serving_load.predictions(client, model, images), labels, strict=True)
    )


if __name__ == "__main__":
    command.run_command(main, extra="train,serve")
