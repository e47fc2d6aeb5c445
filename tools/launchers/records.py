"""What is kept of a job with a name: a folder with how it was described, what was rendered for it, how it is, and all it wrote.

    RECORDS/NAME/job.json              the launcher's own arguments and the command, as given
    RECORDS/NAME/state.json            how it is: which attempt, with which code it ended
    RECORDS/NAME/handle, stopped       its scheduler's name for it; that somebody asked to end it
    RECORDS/NAME/rendered/             the files that ran
    RECORDS/NAME/attempt_N/process_M.log

It is held by its launcher as a workdir is by its writer, so that two of one name do not run at a time, and one that died is told
from one that runs.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving.command import UserError
from trainer import workdir

_HANDLE, _STOPPED = "handle", "stopped"
_POLL_S = 0.5
_ATTEMPT = re.compile(r"attempt_(\d+)")


class Record:
    """The folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        return (self.folder / "job.json").is_file()

    def describe(self, flags: Sequence[str], command: Sequence[str]) -> None:
        """Keeps how the job was asked for."""
        (self.folder / "job.json").write_text(job_text(flags, command), encoding="utf-8")

    def described(self) -> tuple[list[str], tuple[str, ...]]:
        """(The launcher's own arguments, the command).

        Raises:
          UserError: when somebody else wrote the file.
        """
        kept = self._read("job.json")
        if not all(isinstance(kept.get(name), list) for name in ("flags", "command")):
            raise UserError(f"{self.folder / 'job.json'} describes no job; remove {self.folder}")
        return kept["flags"], tuple(kept["command"])

    def render(self, files: dict[str, str]) -> Path:
        """Writes what runs, in place of what an earlier job of this name ran; the folder."""
        folder = self.folder / "rendered"
        shutil.rmtree(folder, ignore_errors=True)
        return write_files(folder, files)

    def note(self, **values: Any) -> None:
        """Adds to what is known of the job's state."""
        self._write("state.json", {**self.state(), **values, "since_s": round(time.time())})

    def begin(self, backend: str, sweep: str = "") -> None:
        """Notes that a launcher begins with the job, one of a sweep perhaps: nothing of an earlier one's end is left."""
        for name in (_HANDLE, _STOPPED):
            (self.folder / name).unlink(missing_ok=True)
        about = {"backend": backend, "sweep": sweep, "state": "starting"}
        self._write("state.json", {**about, "pid": os.getpid(), "host": socket.gethostname()})

    # A scheduler may already run the job, which notes its state: these two have files of their own.

    @property
    def handle(self) -> str:
        """The scheduler's name for the job, "" where it was not handed over."""
        file = self.folder / _HANDLE
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @handle.setter
    def handle(self, text: str) -> None:
        (self.folder / _HANDLE).write_text(text, encoding="utf-8")

    @property
    def stopped(self) -> bool:
        """Whether somebody has asked the scheduler to end the job."""
        return (self.folder / _STOPPED).is_file()

    def mark_stopped(self) -> None:
        (self.folder / _STOPPED).touch()

    def state(self) -> dict[str, Any]:
        """What was noted; empty before the first time."""
        return self._read("state.json") if (self.folder / "state.json").is_file() else {}

    def attempts(self) -> list[Path]:
        """The folders of its attempts, oldest first."""
        numbers = (_ATTEMPT.fullmatch(path.name) for path in self.folder.glob("attempt_*"))
        return [self.folder / f"attempt_{number}" for number in sorted(int(one[1]) for one in numbers if one)]

    def next_attempt(self) -> Path:
        """A new folder for the output of the next attempt."""
        before = self.attempts()
        number = int(before[-1].name.removeprefix("attempt_")) + 1 if before else 0
        folder = self.folder / f"attempt_{number}"
        folder.mkdir(parents=True)
        self.note(state="running", attempt=number, code=None, reason="")
        return folder

    @contextlib.contextmanager
    def held(self, patience_s: float = 0.0) -> Iterator[None]:
        """Keeps the record for this launcher; another that holds it has so long to end.

        Raises:
          UserError: when another launcher runs a job of this name, or no folder can be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: {error.strerror}; give --records a folder that can be written"
            ) from error
        deadline_s = time.monotonic() + patience_s
        while self.is_held() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        with workdir.hold(self.folder, "running a job of this name", instead="give this one another --name"):
            yield

    def is_held(self) -> bool:
        """Whether its launcher lives."""
        return workdir.is_held(self.folder)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name} cannot be read ({error}); remove {self.folder}") from error
        if not isinstance(kept, dict):
            raise UserError(f"{self.folder / name} holds no record of a job; remove {self.folder}")
        return kept

    def _write(self, name: str, value: dict[str, Any]) -> None:
        # Whole or not at all: others read while this is written.
        partial = self.folder / f".{name}"
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.folder / name)


def job_text(flags: Sequence[str], command: Sequence[str]) -> str:
    """The text of job.json."""
    return json.dumps({"flags": list(flags), "command": list(command)}, indent=2) + "\n"


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Writes files by name into `folder`, in place of those of the same names.

    Raises:
      UserError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error
    return folder


def recorded(records: Path, name: str) -> Record:
    """The record of a job.

    Raises:
      UserError: naming those there are.
    """
    record = Record(records / name)
    if name and record.exists():
        return record
    known = ", ".join(one.name for one in all_records(records)) or "none"
    problem = f"no job {name!r} in {records}" if name else f"say with --name which job in {records}"
    raise UserError(f"{problem}; there is: {known}")


def all_records(records: Path) -> list[Record]:
    """Every record in the folder, by name."""
    return [Record(path.parent) for path in sorted(records.glob("*/job.json"))]
