"""What the processes of a recorded job wrote: from the files of its record, or by a command of its scheduler's."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from serving.command import ExitCode, UserError
from tools.launchers.gang import GLOO_CONNECTED
from tools.launchers.launcher import Launcher, Submitting
from tools.launchers.records import Record

_POLL_S = 1.0


def show_output(
    launcher: Launcher,
    folders: Sequence[Record],
    handle: str,
    follow: bool,
    process: int | None,
    is_open: Callable[[], bool],
) -> None:
    """Shows what the processes of a job wrote, on stdout."""
    if isinstance(launcher, Submitting) and handle and launcher.logs(handle, False, 0) is not None:
        if process is not None:
            raise UserError("--process is not for this back end: its command shows all pods, by their names")
        _show_by(launcher, handle, follow, is_open)
        return
    tails = _Tails(folders, process)
    # Asked before the files are read: what was written until the end is read after it.
    while follow and is_open():
        tails.show(sys.stdout)
        time.sleep(_POLL_S)
    tails.show(sys.stdout, to_the_end=True)
    if process is not None and not tails.heads:
        raise UserError(f"--process={process}: there is no output of such a process")


def _show_by(launcher: Submitting, handle: str, follow: bool, is_open: Callable[[], bool]) -> None:
    """By a command of the scheduler's; one that follows ends with the processes there are, and begins again with the next."""
    since_s, begun_s = 0.0, time.monotonic()
    while True:
        shown = launcher.logs(handle, follow, since_s)
        assert shown is not None
        done = subprocess.run(shown, check=False)
        since_s, begun_s = time.monotonic() - begun_s, time.monotonic()
        if not follow or not is_open():
            break
        time.sleep(_POLL_S)
    if done.returncode:
        raise UserError(f"{' '.join(shown[:2])} failed, as it says above", ExitCode.BUG)


class _Tails:
    """The output of all processes of some jobs, each line once."""

    def __init__(self, records: Sequence[Record], process: int | None) -> None:
        self._records, self._process = records, process
        self._read: dict[Path, int] = {}
        self.heads: set[str] = set()  # of the files that were found

    def show(self, output: TextIO, to_the_end: bool = False) -> None:
        """Writes the lines that came since the last call; at the end also a last one that was never ended."""
        for head, path in self._files():
            self.heads.add(head)
            begun = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(begun)
                text = file.read()
            whole = text.rstrip(b"\n") if to_the_end else text.rpartition(b"\n")[0]
            if not whole:
                continue
            self._read[path] = begun + len(whole) + 1
            for line in whole.decode(errors="replace").split("\n"):
                if not GLOO_CONNECTED.fullmatch(line):
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
