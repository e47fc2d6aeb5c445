"""Real training processes of a model so small that starting Python takes longer than training it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.small_models import save_digits
from trainer import checkpoint
from trainer.models.build import flatten

ROOT = Path(__file__).parents[2]
# A process that does not get on is a failure, never a wait without end; two busy cores compile in some 10 s.
PATIENCE_S = 240
Record = list[dict[str, float]]


def settings(shape_of: Path, **overrides: object) -> list[str]:
    """Arguments of `trainer.main` for a run of the shape of the small checkpoint at `shape_of`."""
    values = {
        "image_size": 8,
        "shape_of": shape_of,
        "total_steps": 100,
        "warmup_steps": 5,
        "batch": 32,
        "base_lr": 0.01,
        "checkpoint_every": 10,
        "eval_every": 50,
        "log_every": 1,
        **overrides,
    }
    given = [f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()]
    return ["--config=configs/digits.py:scratch", *given]


def small_shape(folder: Path) -> Path:
    """A checkpoint of 5,000 random parameters under `folder`, whose shape runs take."""
    save_digits(folder / "small")
    return folder / "small"


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """`python -m COMMAND…` from the root of the repository, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that is given time to end by itself."""
    try:
        output, log = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, output, log


def train(workdir: Path, arguments: list[str], **environment: str) -> tuple[int, str, str]:
    """Runs `trainer.main` to its end."""
    return ended(start(["trainer.main", f"--workdir={workdir}", *arguments], **environment))


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns as soon as the files that `process` writes say `there`; fails when it ends before, or is too slow."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not there():
        try:
            process.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline_s:
                continue
            process.kill()
        raise AssertionError(
            f"ended with {process.returncode} before it got there: {process.communicate()[1]}"
        )


def result(output: str) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    value = json.loads(output.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def record(workdir: Path) -> Record:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def learnt(workdir: Path) -> Record:
    """The lines of the record that say what was learnt: those of speed are never the same twice."""
    return [line for line in record(workdir) if "goodput" not in line]


def losses(workdir: Path) -> dict[int, float]:
    """Training loss by step."""
    return {int(line["step"]): line["loss"] for line in record(workdir) if "loss" in line}


def files(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_parameters(one: Path, other: Path) -> None:
    """The newest checkpoints hold the same arrays, to the last bit."""
    first, second = (flatten(checkpoint.load(path).params) for path in (one, other))
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
