"""What is kept of a job with a name: a folder with how it was described, what was rendered for it, how it is, and all it wrote.

    RECORDS/NAME/job.json              the launcher's own arguments and the command, as given
    RECORDS/NAME/state.json            how it is: which attempt, how far, with which code it ended
    RECORDS/NAME/rendered/             the files that ran
    RECORDS/NAME/attempt_N/process_M.log

It is held by its launcher as a workdir is by its writer, so that two of one name do not run at a time, and one that died is told
from one that runs.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving.command import UserError
from trainer import workdir

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
        self._write("job.json", {"flags": list(flags), "command": list(command)})

    def described(self) -> tuple[list[str], tuple[str, ...]]:
        """(The launcher's own arguments, the command)."""
        kept = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        return list(kept["flags"]), tuple(kept["command"])

    def render(self, files: dict[str, str]) -> Path:
        """Writes what runs, in place of what an earlier job of this name ran; the folder."""
        folder = self.folder / "rendered"
        for path in folder.glob("*"):
            path.unlink()
        return write_files(folder, files)

    def note(self, **values: Any) -> None:
        """Adds to what is known of the job's state."""
        self._write("state.json", {**self.state(), **values, "since_s": round(time.time())})

    def begin(self, backend: str) -> None:
        """Notes that a launcher begins with the job: nothing of an earlier one's end is left."""
        self._write(
            "state.json",
            {"backend": backend, "state": "starting", "pid": os.getpid(), "host": socket.gethostname()},
        )

    def state(self) -> dict[str, Any]:
        """What was noted; empty before the first time."""
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            assert isinstance(kept, dict)
            return kept
        return {}

    def attempts(self) -> list[Path]:
        """The folders of its attempts, oldest first."""
        numbers = (_ATTEMPT.fullmatch(path.name) for path in self.folder.glob("attempt_*"))
        return [self.folder / f"attempt_{number}" for number in sorted(int(one[1]) for one in numbers if one)]

    def next_attempt(self) -> Path:
        """A new folder for the output of the next attempt."""
        number = len(self.attempts())
        folder = self.folder / f"attempt_{number}"
        folder.mkdir(parents=True)
        self.note(state="running", attempt=number)
        return folder

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the record for this launcher.

        Raises:
          UserError: when another launcher runs a job of this name, or no folder can be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: {error.strerror}; give --records a folder that can be written"
            ) from error
        with workdir.hold(self.folder, "running a job of this name", instead="give this one another --name"):
            yield

    def is_held(self) -> bool:
        """Whether its launcher lives."""
        return workdir.is_held(self.folder)

    def _write(self, name: str, value: dict[str, Any]) -> None:
        # Whole or not at all: others read while this is written.
        partial = self.folder / f".{name}"
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.folder / name)


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Writes files by name into `folder`, in place of those of the same names.

    Raises:
      UserError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
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
