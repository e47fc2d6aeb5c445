"""A workdir has one writer at a time. The kernel frees the lock when its holder ends, however it ends.

Needs neither jax nor a checkpoint. In a job of several processes, process 0 holds it for all.
"""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from serving.command import UserError

_NAME = ".lock"


@contextlib.contextmanager
def hold(workdir: Path, doing: str) -> Iterator[None]:
    """Keeps `workdir`, which is there, for this process; `doing` is what others are told ("training").

    Raises:
      UserError: naming who holds it.
    """
    with (workdir / _NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process is at work"
            raise UserError(f"{holder} in {workdir}; wait for it or give another --workdir") from error
        _say(file.fileno(), f"another process (pid {os.getpid()} on {socket.gethostname()}) is {doing}\n")
        try:
            yield
        finally:
            _say(file.fileno(), "")  # a killed holder leaves its line; nobody reads it without a holder


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
