"""The main job on real images, end to end: train, cut, distil, export, serve, measure. Each step is a command of its own.

    python -m tools.quickstart [--dataset=digits|fashion_mnist] [--data_dir=DIR] [--workdir=runs/quickstart] [--fresh]

Writes results.json, report.md and plots under the workdir, and its bundles in WORKDIR/models/NAME/1. Run again, it goes on with
the first step that is not done.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from serving.client import VisionClient
from serving.command import ExitCode, UserError
from serving.runtime import cpu
from tools import report, serving_load
from tools.report import Row

_DATASETS = ("digits", "fashion_mnist")
_DRAIN_S = 60
_MARK = ".quickstart"
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

    def __init__(self, workdir: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = workdir / "steps"
        self._environment = os.environ | dict(environment or {})
        self.seconds: dict[str, float] = {}

    def run(self, name: str, module: str, *arguments: str, makes: Path | None = None) -> Result:
        """The result of `python -m module arguments`, run now or, with the same arguments, before.

        `makes` is what a step that cannot go on by itself leaves behind when it is interrupted; it is removed first.

        Raises:
          UserError: when the command fails, with its exit code; it has said why.
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
        ended = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=self._environment,
        )
        if ended.returncode:
            code = ExitCode(ended.returncode) if ended.returncode in set(ExitCode) else ExitCode.BUG
            raise UserError(
                f"step {name!r} failed with exit code {ended.returncode}; its own message stands above", code
            )
        self.seconds[name] = round(time.monotonic() - began_s, 1)
        result: Result = json.loads(ended.stdout.splitlines()[-1])
        self._folder.mkdir(parents=True, exist_ok=True)
        record.write_text(
            json.dumps({"command": shown, "seconds": self.seconds[name], "result": result}) + "\n"
        )
        return result


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
    workdir = Path(values["workdir"].value)
    _claim(workdir, values["fresh"].value)
    return quickstart(values["dataset"].value, values["data_dir"].value, workdir)


def _claim(workdir: Path, fresh: bool) -> None:
    """Makes the workdir ours by a mark of our own; only what bears it is ever removed.

    Raises:
      UserError: for a file, or a folder that holds something else.
    """
    command.require_folder(workdir, "--workdir")
    if workdir.exists() and any(workdir.iterdir()) and not (workdir / _MARK).is_file():
        raise UserError(
            f"--workdir={workdir} holds something that no quickstart has written; give another folder"
        )
    if fresh:
        shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / _MARK).touch()


def quickstart(dataset: str, data_dir: str, workdir: Path) -> dict[str, object]:
    """The whole job; see the module."""
    began_s, variants = time.monotonic(), _variants()
    with tempfile.TemporaryDirectory(prefix="vitforge-compiled-") as compiled:
        steps = Steps(workdir, _compiling_once(compiled))
        exported = _make_models(steps, variants, dataset, data_dir, workdir)
    images, labels = report.test_images(dataset, data_dir)
    load = serving_load.Load()
    with serving(workdir / "models") as address, VisionClient(address) as client:
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
    print("\n" + text, file=sys.stderr)
    return {
        "workdir": str(workdir),
        "seconds": steps.seconds["in all"],
        "results": [row.to_json() for row in rows],
    }


def _compiling_once(folder: str) -> dict[str, str]:
    """What makes JAX keep what it compiles in `folder`: several steps run models of one shape. A user's own setting stays."""
    settings = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {name: os.environ.get(name, value) for name, value in settings.items()}


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
    )
    steps.run("pruned", "trainer.compress", *cutting, *data, makes=Path(at["pruned"]))
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
def serving(repository: Path) -> Iterator[str]:
    """A server on `repository`, a process of its own on a free port; its address, once it is ready; drained at the end."""
    arguments = ["-m", "serving.main", f"--model_repository={repository}", "--host=127.0.0.1", "--port=0"]
    print(f"\n== serve\n   python {' '.join(arguments)}", file=sys.stderr, flush=True)
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                raise UserError(
                    "the server ended before it was ready; its own message stands above", ExitCode.BUG
                )
            yield f"127.0.0.1:{json.loads(line)['port']}"
        finally:
            server.terminate()
            server.communicate(timeout=_DRAIN_S)  # reads its last words, or it would end on a broken pipe


if __name__ == "__main__":
    command.run_command(main)
