"""A workdir: which checkpoints it holds, and that it has one writer at a time.

The kernel frees the lock when its holder ends, however it ends; in a job of several processes, process 0 holds it for all.
Needs no jax, so that launchers can look.
"""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from serving.command import UserError

CHECKPOINTS = "checkpoints"
_NAME = ".lock"


def steps(path: Path) -> list[int]:
    """The steps whose checkpoints under `path` (a workdir or its checkpoints folder) are whole, oldest first."""
    root = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    if not root.is_dir():
        return []
    found = (
        folder
        for folder in root.iterdir()
        if folder.name.isdecimal() and (folder / "meta" / "metadata").is_file()
    )
    return sorted(int(folder.name) for folder in found)


@contextlib.contextmanager
def hold(workdir: Path, doing: str, instead: str = "give another --workdir") -> Iterator[None]:
    """Keeps `workdir`, which is there, for this process; `doing` is what others are told ("training").

    Raises:
      UserError: naming who holds it, and what to do `instead` of waiting.
    """
    with (workdir / _NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process is at work"
            raise UserError(f"{holder} in {workdir}; wait for it or {instead}") from error
        _say(file.fileno(), f"another process (pid {os.getpid()} on {socket.gethostname()}) is {doing}\n")
        try:
            yield
        finally:
            _say(file.fileno(), "")  # a killed holder leaves its line; nobody reads it without a holder


def is_held(workdir: Path) -> bool:
    """Whether some process holds `workdir`."""
    try:
        with (workdir / _NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def hold_new(workdir: Path, doing: str) -> Iterator[None]:
    """Like `hold` for a workdir that may not be there: it is made, and goes again when nothing was written to it."""
    workdir.mkdir(parents=True, exist_ok=True)
    with hold(workdir, doing):
        try:
            yield
        except BaseException:
            if [path.name for path in workdir.iterdir()] == [_NAME]:
                shutil.rmtree(workdir, ignore_errors=True)
            raise


def _say(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, text.encode())
