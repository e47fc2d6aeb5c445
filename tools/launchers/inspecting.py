"""How recorded jobs are: their state, their output, their results, and how to end them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from serving.command import ExitCode, UserError
from tools.launchers.job import Job
from tools.launchers.launcher import Finding, Launcher, Submitting
from tools.launchers.records import Record, all_records
from tools.launchers.running import newest_step, say
from tools.launchers.sweep import results

POLL_S = 1.0
_SHOWN = ("step", "loss", "validation_top1", "validation_loss")


@dataclass(frozen=True)
class State:
    """How a job is: starting, waiting, running, restarting, ended, or lost when its launcher died; and why."""

    state: str
    words: str = ""
    code: int | None = None
    attempt: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still change."""
        return self.state not in ("ended", "lost")


def state_of(launcher: Launcher, record: Record) -> State:
    """The state of a recorded job, as its scheduler or its launcher says."""
    kept = record.state()
    code, attempt, reason = kept.get("code"), kept.get("attempt"), kept.get("reason", "")
    if isinstance(launcher, Submitting):
        if "handle" not in kept:
            return State("lost", "it was never handed over")
        seen = launcher.look(kept["handle"])
        if seen.state != "ended":
            return State(seen.state, seen.words, None, attempt)
        code = seen.code if seen.code is not None else code
        return State("ended" if code is not None else "lost", reason or seen.words, code, attempt)
    if record.is_held():
        return State(kept.get("state", "starting"), reason, None, attempt)
    if kept.get("state") == "ended":
        return State("ended", reason, code, attempt)
    return State("lost", "its launcher died", None, attempt)


def all_jobs(records: Path, state: Callable[[str], State]) -> dict[str, object]:
    """Shows every recorded job on a line; the same as an object."""
    rows: list[dict[str, object]] = []
    for record in all_records(records):
        try:
            seen = state(record.name)
        except UserError as error:  # one cluster that does not answer hides no other job
            seen = State("unknown", str(error))
        rows.append({"name": record.name, "backend": record.state().get("backend", ""), **_row(seen)})
    _table(rows, f"no job is recorded in {records}")
    return {"records": str(records), "jobs": rows}


def show(state: State, record: Record, jobs: Sequence[Job]) -> dict[str, object]:
    """Shows one job, or the table of a sweep."""
    about = {"name": record.name, "backend": record.state().get("backend", ""), **_row(state)}
    if len(jobs) > 1:
        _table([about], "")
        return about | {"jobs": show_sweep(record, jobs)}
    about |= {"step": newest_step(jobs[0]), **_measured(jobs[0])}
    _table([about], "")
    return about


def show_sweep(parent: Record, jobs: Sequence[Job]) -> list[dict[str, object]]:
    """Shows what each job of a sweep reached, in a table; the rows."""
    rows = []
    for job in jobs:
        record = Record(parent.folder.parent / job.name)
        kept = record.state() if record.exists() else {}
        point = Path(job.option("workdir")).name
        state = kept.get("state", "to come")
        if state in ("running", "restarting", "starting") and not record.is_held():
            state = "lost"
        rows.append({"job": point, "state": state, "code": kept.get("code"), **_measured(job)})
    _table(rows, "")
    return rows


def _measured(job: Job) -> dict[str, object]:
    found = results(Path(job.option("workdir"))) if job.option("workdir") else {}
    return {name: found[name] for name in _SHOWN if name in found}


def _row(state: State) -> dict[str, object]:
    return {"state": state.state, "code": state.code, "attempt": state.attempt, "why": state.words}


def _table(rows: Sequence[dict[str, object]], empty: str) -> None:
    if not rows:
        print(empty, file=sys.stderr)
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip(), file=sys.stderr)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def report(findings: Sequence[Finding]) -> dict[str, object]:
    """Shows what the doctor found.

    Raises:
      UserError: when something is missing.
    """
    for finding in findings:
        line = (
            f"missing  {finding.what}: {finding.problem}; {finding.remedy}"
            if finding.problem
            else f"ok       {finding.what}"
        )
        print(line, file=sys.stderr)
    problems = sum(bool(finding.problem) for finding in findings)
    if problems:
        raise UserError(f"{problems} of {len(findings)} things are not as they should be, see above")
    return {"looked_at": [finding.what for finding in findings], "problems": 0}


def stop(launcher: Launcher, record: Record) -> dict[str, object]:
    """Asks a job to save and end, and stays until it has."""
    state = state_of(launcher, record)
    if isinstance(launcher, Submitting):
        if state.is_open:
            launcher.stop(record.state()["handle"])
            record.note(stopped=True)
    elif state.is_open:
        _stop_launcher(record)
    elif state.state == "lost":
        launcher.release(record.name)  # type: ignore[attr-defined]
    if not state.is_open:
        say(f"{record.name} had {state.state} before")
    while (state := state_of(launcher, record)).is_open:
        time.sleep(POLL_S)
    return {"name": record.name, **_row(state)}


def _stop_launcher(record: Record) -> None:
    kept = record.state()
    if kept.get("host") != socket.gethostname():
        raise UserError(f"the launcher of {record.name} runs on {kept.get('host')}; stop it from there")
    os.kill(kept["pid"], signal.SIGTERM)


def show_logs(
    launcher: Launcher, record: Record, folders: Sequence[Record], follow: bool, process: int | None
) -> None:
    """Shows what the processes of a job wrote, on stdout."""
    handle = record.state().get("handle")
    if isinstance(launcher, Submitting) and handle:
        shown = launcher.logs(handle, follow)
        if shown is not None:
            _show_by(shown, launcher, record, follow)
            return
    tails = _Tails(folders, process)
    # Asked before the files are read: what was written until the end is read after it.
    while follow and state_of(launcher, record).is_open:
        tails.show(sys.stdout)
        time.sleep(POLL_S)
    tails.show(sys.stdout)


def _show_by(shown: Sequence[str], launcher: Launcher, record: Record, follow: bool) -> None:
    """By a command of the scheduler's; one that follows ends with the processes there are, and begins again with the next."""
    while True:
        done = subprocess.run(shown, check=False)
        if not follow or not state_of(launcher, record).is_open:
            break
        time.sleep(POLL_S)
    if done.returncode:
        raise UserError(f"{' '.join(shown[:2])} failed, as it says above", ExitCode.BUG)


class _Tails:
    """The output of all processes of some jobs, each line once."""

    def __init__(self, records: Sequence[Record], process: int | None) -> None:
        self._records, self._process = records, process
        self._read: dict[Path, int] = {}

    def show(self, output: TextIO) -> None:
        """Writes the lines that came since the last call."""
        for head, path in self._files():
            begun = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(begun)
                text = file.read()
            whole = text.rpartition(b"\n")[0]
            if not whole:
                continue
            self._read[path] = begun + len(whole) + 1
            for line in whole.decode(errors="replace").split("\n"):
                print(f"[{head}] {line.rpartition(chr(13))[2]}", file=output)
        output.flush()

    def _files(self) -> Iterator[tuple[str, Path]]:
        for record in self._records:
            job = f"{record.name} " if len(self._records) > 1 else ""
            for attempt in record.attempts():
                again = f" attempt {attempt.name.rpartition('_')[2]}" if len(record.attempts()) > 1 else ""
                for path in sorted(attempt.glob("process_*.log"), key=_number):
                    if self._process in (None, _number(path)):
                        yield f"{job}{_number(path)}{again}", path
            if self._process is None:
                for path in sorted(record.folder.glob("slurm-*.log")):
                    yield f"{job}launch", path


def _number(path: Path) -> int:
    found = re.search(r"\d+", path.stem)
    return int(found[0]) if found else 0
