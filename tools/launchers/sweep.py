"""One job for each point of a grid: `--sweep base_lr=0.01,0.03 wd=0.03,0.1` are four.

Each point has a workdir and a name of its own, so that a sweep that was stopped goes on where it was, and its results are told
apart.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from serving.command import UserError
from tools.launchers.job import NAME, Job

WORKDIR = "--workdir"
_LONGEST = 36


@dataclasses.dataclass(frozen=True)
class Point:
    """One of a sweep's jobs; `values` are its settings by key."""

    values: dict[str, str]
    job: Job

    @property
    def text(self) -> str:
        """As base_lr=0.01,wd=0.03."""
        return ",".join(f"{key}={value}" for key, value in self.values.items())


def split_sweep(own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the words of `--sweep` out of the launcher's own arguments; (the other arguments, KEY=VALUES words)."""
    rest: list[str] = []
    words: list[str] = []
    pending = list(own)
    while pending:
        word = pending.pop(0)
        if word != "--sweep" and not word.startswith("--sweep="):
            rest.append(word)
            continue
        if word != "--sweep":
            words.append(word.partition("=")[2])
        while pending and not pending[0].startswith("-"):
            words.append(pending.pop(0))
        if not words:
            raise UserError("--sweep needs KEY=VALUE,VALUE…, as in --sweep base_lr=0.01,0.03 wd=0.03,0.1")
    return rest, words


def points(job: Job, words: Sequence[str]) -> list[Point]:
    """The jobs of a sweep, the last key changing fastest.

    Raises:
      UserError: for words that are no lists of values, and a job whose points would share a workdir.
    """
    grid = _grid(words)
    workdir = job.option("workdir")
    if not workdir:
        raise UserError(
            "--sweep needs a command with a --workdir, in which each job gets a folder of its own"
        )
    found: list[Point] = []
    for number, values in enumerate(itertools.product(*grid.values())):
        settings = dict(zip(grid, values))
        text = ",".join(f"{key}={value}" for key, value in settings.items())
        folder = f"{workdir.rstrip('/')}/{text.replace('/', '_')}"
        if any(folder == point.job.option("workdir") for point in found):
            raise UserError(
                f"--sweep {' '.join(words)}: two jobs would share the workdir {folder}; let their values differ otherwise"
            )
        given = [f"--config.{key}={value}" for key, value in settings.items()]
        command = (*job.command, *given, f"{WORKDIR}={folder}")
        name = f"{job.name}-{number}"
        if not NAME.fullmatch(name):
            raise UserError(
                f"--sweep: a job would be called {name!r}; give the sweep a --name of at most {_LONGEST} letters"
            )
        found.append(Point(settings, dataclasses.replace(job, command=command, name=name)))
    return found


def _grid(words: Sequence[str]) -> dict[str, list[str]]:
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = _split(text)
        if not equals or not key or not all(values):
            raise UserError(f"--sweep {word}: KEY=VALUE,VALUE… is expected, as in base_lr=0.01,0.03")
        if key in grid or len(set(values)) < len(values):
            raise UserError(f"--sweep {word}: {key} or one of its values is given twice")
        grid[key] = values
    return grid


def _split(text: str) -> list[str]:
    """The values between the commas that stand in no brackets: (1,2),(3,4) are two."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return values


def results(workdir: Path) -> dict[str, float]:
    """The newest of what the run in `workdir` measured: step, loss, and accuracies of validation; empty before it did."""
    found: dict[str, float] = {}
    try:
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:  # the last line, while it is written
            continue
        wanted = ("step", "loss", *(name for name in said if name.startswith("validation_")))
        found |= {name: said[name] for name in wanted if said.get(name) is not None}
    return found


def last_result(log: Path) -> dict[str, float]:
    """The JSON object that a process wrote last of all lines, as its result; empty where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                said = json.loads(line)
            except ValueError:
                continue
            return {"step": said["steps"], **said} if "steps" in said else said
    return {}
