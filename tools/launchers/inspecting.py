"""How recorded jobs are: their state and their results, in tables; and how to end them."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.command import UserError
from tools.launchers.job import Job
from tools.launchers.launcher import Attending, Finding, Launcher, Submitting
from tools.launchers.records import Record, all_records
from tools.launchers.running import newest_step, say
from tools.launchers.sweep import last_result, results

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
    """The state of one recorded job, as its scheduler or its launcher says."""
    if isinstance(launcher, Submitting):
        return _handed_over(launcher, record)
    held = record.is_held()
    noted = _noted(record)  # read after that: a launcher notes its end before it lets go
    if noted.state == "ended":
        return noted
    if held:
        return State(noted.state or "starting", noted.words, None, noted.attempt)
    return State("lost", "its launcher died", None, noted.attempt)


def _noted(record: Record) -> State:
    """What the job's own launcher has written, each word empty where it has not."""
    kept = record.state()
    return State(kept.get("state") or "", kept.get("reason") or "", kept.get("code"), kept.get("attempt"))


def _handed_over(launcher: Submitting, record: Record) -> State:
    """The state of a job that a scheduler has, whose own launcher there has noted something, or nothing."""
    if not record.handle:
        noted = _noted(record)
        return noted if noted.state == "ended" else State("lost", "it was never handed over")
    seen = launcher.look(record.handle)
    noted = _noted(record)  # read after the scheduler was asked: a job notes its end before it ends
    if seen.state != "ended":
        return State(seen.state, seen.words, None, noted.attempt)
    code = seen.code if seen.code is not None else noted.code
    if record.stopped:
        return State("ended", "stopped", code, noted.attempt)
    return State("ended" if code is not None else "lost", noted.words or seen.words, code, noted.attempt)


def state_of_sweep(launcher: Launcher, parent: Record, jobs: Sequence[Job]) -> State:
    """Of a sweep as a whole: once its scheduler has ended with it, the state of its first job that failed."""
    whole = state_of(launcher, parent)
    if not isinstance(launcher, Submitting) or whole.is_open or not parent.handle:
        return whole
    states = [state_of_point(launcher, parent, job) for job in jobs]
    failed = next((one for one in states if one.state == "lost" or one.code), states[-1])
    return State(failed.state, failed.words, failed.code)


def state_of_point(launcher: Launcher, parent: Record, job: Job) -> State:
    """Of one job of a sweep; to come, where the sweep has not got to it as it is asked for now."""
    record = Record(parent.folder.parent / job.name)
    if not record.exists() or record.described()[1] != job.command:
        return State(
            "to come" if isinstance(launcher, Submitting) or parent.is_held() else "ended", "not begun"
        )
    return state_of(launcher, record)


def all_jobs(records: Path, state: Callable[[str], State]) -> dict[str, object]:
    """Shows every recorded job on a line, a sweep as one; the same as an object."""
    rows: list[dict[str, object]] = []
    for record in all_records(records):
        kept: dict[str, Any] = {}
        try:
            kept = record.state()
            if kept.get("sweep"):
                continue
            seen = state(record.name)
        except UserError as error:  # one cluster that does not answer, or one bad record, hides no other job
            seen = State("unknown", str(error))
        rows.append({"name": record.name, "backend": kept.get("backend", ""), **_row(seen)})
    _table(rows, f"no job is recorded in {records}")
    return {"records": str(records), "jobs": rows}


def show(state: State, record: Record, job: Job) -> dict[str, object]:
    """Shows one job."""
    about = {"name": record.name, "backend": record.state().get("backend", ""), **_row(state)}
    measured = _measured(job, record)
    about |= {**measured, "step": newest_step(job) or measured.get("step")}
    _table([about], "")
    return about


def show_sweep(launcher: Launcher, parent: Record, jobs: Sequence[Job]) -> list[dict[str, object]]:
    """Shows what each job of a sweep reached, in a table; the rows."""
    rows = []
    for job in jobs:
        seen = state_of_point(launcher, parent, job)
        measured = (
            {} if seen.words == "not begun" else _measured(job, Record(parent.folder.parent / job.name))
        )
        rows.append(
            {"job": Path(job.option("workdir")).name, "state": seen.state, "code": seen.code, **measured}
        )
    _table(rows, "")
    return rows


def _measured(job: Job, record: Record) -> dict[str, object]:
    """From the workdir where this machine sees it, else from the result that process 0 wrote last."""
    found = results(Path(job.option("workdir"))) if job.option("workdir") else {}
    for attempt in [] if found else reversed(record.attempts()):
        found = found or last_result(attempt / "process_0.log")
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


def stop(
    launcher: Launcher, record: Record, jobs: Sequence[Job], look: Callable[[], State]
) -> dict[str, object]:
    """Asks a job, or a sweep, to save and end, and stays until it has."""
    state = look()
    if not state.is_open:
        say(f"{record.name} was {state.state} before")
    elif isinstance(launcher, Submitting):
        launcher.stop(record.handle)
        for one in (record, *(Record(record.folder.parent / job.name) for job in jobs)):
            if one.exists():
                one.mark_stopped()
    else:
        _stop_launcher(record)
    while (state := look()).is_open:
        time.sleep(POLL_S)
    if isinstance(launcher, Attending) and state.state == "lost":
        for job in jobs:
            launcher.release(job)
    return {"name": record.name, **_row(state)}


def _stop_launcher(record: Record) -> None:
    kept = record.state()
    if kept.get("host") != socket.gethostname():
        raise UserError(f"the launcher of {record.name} runs on {kept.get('host')}; stop it from there")
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(kept["pid"], signal.SIGTERM)
