"""The main job on real images, end to end: train, cut, distil, export, serve, measure. Each step is a command of its own.

    python -m tools.quickstart [--dataset=digits|fashion_mnist] [--data_dir=DIR] [--workdir=runs/quickstart] [--fresh]

Writes results.json, report.md and plots under the workdir, and its bundles in WORKDIR/models/NAME/1. Run again, it goes on with
the first step that is not done. SIGTERM and Ctrl-C reach the step that runs, which saves its state; the exit code is the step's.
"""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from serving import command, installation
from serving.client import VisionClient
from serving.command import ExitCode, UserError
from serving.runtime import cpu
from tools import serving_load
from tools.launchers.job import ending, table_code
from tools.stop_requests import Stopped, StopRequests, start
from trainer.workdir import hold

_DATASETS = ("digits", "fashion_mnist")
_DRAIN_S = 60
_MARK = ".quickstart"  # holds the name of the data set
_GOES_ON = "run the same command to go on"
Result = dict[str, Any]


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


def _variants() -> tuple[Variant, ...]:
    """The rows that this machine can give: int8 is neither exported nor served where its CPU would compute it wrongly."""
    if cpu.supports(cpu.INT8) is not False:
        return VARIANTS
    print("\nint8 is left out: this CPU has none of " + ", ".join(cpu.INT8), file=sys.stderr)
    return tuple(variant for variant in VARIANTS if variant.precision != "int8")


class Steps:
    """Runs commands one after the other, shows them as a user would type them, and remembers which are done.

    `environment` holds variables that change how fast a step is, never what it makes.
    """

    def __init__(
        self, workdir: Path, stop: StopRequests, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = workdir / "steps"
        self._stop = stop
        self._environment = os.environ | dict(environment or {})
        self.seconds: dict[str, float] = {}

    def run(self, name: str, module: str, *arguments: str, makes: Path | None = None) -> Result:
        """The result of `python -m module arguments`, run now or, with the same arguments, before.

        `makes` is what a step that cannot go on by itself leaves behind when it is interrupted; it is removed first.

        Raises:
          UserError: when the command fails, with its exit code; it has said why.
          Stopped: when it was asked to stop and ended well all the same.
        """
        record = self._folder / f"{name}.json"
        shown = " ".join(["python", "-m", module, *arguments])
        if record.is_file():
            done = json.loads(record.read_text())
            if done["command"] == shown:
                print(f"\n== {name}: done before\n   {shown}", file=sys.stderr)
                self.seconds[name] = done["seconds"]
                return done["result"]
        if makes is not None and not record.is_file():
            shutil.rmtree(makes, ignore_errors=True)
        print(f"\n== {name}\n   {shown}", file=sys.stderr, flush=True)
        began_s = time.monotonic()
        code, output = self._stop.run([sys.executable, "-m", module, *arguments], self._environment)
        if code:
            raise self._failure(name, code)
        self.seconds[name] = round(time.monotonic() - began_s, 1)
        result: Result = json.loads(output.splitlines()[-1])
        with self._stop.deferred():
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = record.with_suffix(".draft")
            done = {"command": shown, "seconds": self.seconds[name], "result": result}
            draft.write_text(json.dumps(done) + "\n")
            os.replace(draft, record)  # whole or not at all, should we be killed now
        return result

    def _failure(self, name: str, code: int) -> UserError:
        if self._stop.asked is None:
            what = f"step {name!r} failed with {ending(code)}; its own message stands above"
        else:
            what = f"{self._stop.asked.name}: step {name!r} ended with {ending(code)}; {_GOES_ON}"
        return UserError(what, table_code(code))


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
        raise UserError(f"{stopped.number.name}: stopped; {_GOES_ON}", 128 + stopped.number) from None


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

    began_s, variants = time.monotonic(), _variants()
    with tempfile.TemporaryDirectory(prefix="vitforge-compiled-") as compiled:
        steps = Steps(workdir, stop, _compiling_once(compiled))
        exported = _make_models(steps, variants, dataset, data_dir, workdir)
    images, labels = report.test_images(dataset, data_dir)
    load = serving_load.Load()
    with serving(workdir / "models", stop) as address, VisionClient(address) as client:
        names = [variant.bundle for variant in variants]
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
        for variant in variants
    ]
    steps.seconds["in all"] = round(time.monotonic() - began_s, 1)
    text = report.write(workdir, dataset, rows, load, steps.seconds)
    print(f"\n{text}\n{_what_next(workdir, dataset, data_dir)}", file=sys.stderr)
    return {
        "workdir": str(workdir),
        "seconds": steps.seconds["in all"],
        "results": [row.to_json() for row in rows],
    }


def _compiling_once(folder: str) -> dict[str, str]:
    """What makes JAX keep what it compiles in `folder`: several steps run models of one shape. A user's own setting stays."""
    settings = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {name: os.environ.get(name, value) for name, value in settings.items()}


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


def _make_models(
    steps: Steps, variants: Sequence[Variant], dataset: str, data_dir: str, workdir: Path
) -> dict[str, Result]:
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
        for variant in variants
    }


def _correct(client: VisionClient, model: str, images: Sequence[bytes], labels: Sequence[int]) -> int:
    return sum(
        found == label
        for found, label in zip(serving_load.predictions(client, model, images), labels, strict=True)
    )


@contextmanager
def serving(repository: Path, stop: StopRequests) -> Iterator[str]:
    """A server on `repository`, a process of its own on a free port; its address, once it is ready; drained at the end."""
    arguments = ["-m", "serving.main", f"--model_repository={repository}", "--host=127.0.0.1", "--port=0"]
    print(f"\n== serve\n   python {' '.join(arguments)}", file=sys.stderr, flush=True)
    server = None
    try:
        with stop.deferred():  # from its first moment on it is known here, and ended below
            server = start([sys.executable, *arguments])
        line = server.stdout.readline() if server.stdout else ""
        if not line:
            raise UserError(
                "the server ended before it was ready; its own message stands above", ExitCode.BUG
            )
        yield f"127.0.0.1:{json.loads(line)['port']}"
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=_DRAIN_S)  # reads its last words, or it would end on a broken pipe


if __name__ == "__main__":
    command.run_command(main, extra="train,serve")
