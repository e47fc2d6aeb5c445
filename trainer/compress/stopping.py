"""SIGTERM and Ctrl-C to a compression: what is finished is on disk at any moment, so that both may end it at once.

A training inside listens for itself (`trainer.preemption`) and saves its step first.
"""

import contextlib
import signal
import types
from collections.abc import Iterator
from pathlib import Path

from serving.command import ExitCode, UserError


class _Preempted(BaseException):
    """Raised where the work stands; no Exception, so that nothing on the way takes it for a failure."""


@contextlib.contextmanager
def stoppable(workdir: Path) -> Iterator[None]:
    """Around the work on `workdir`; the handler that was there before returns at its end.

    Raises:
      UserError: with the exit code of the signal, when asked to stop.
    """
    before = signal.signal(signal.SIGTERM, _hear)
    try:
        yield
    except _Preempted:
        raise UserError(_said("preempted", workdir), ExitCode.PREEMPTED) from None
    except KeyboardInterrupt:
        raise UserError(_said("interrupted", workdir), ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _hear(number: int, frame: types.FrameType | None) -> None:
    raise _Preempted


def _said(how: str, workdir: Path) -> str:
    return f"{how}: what is finished is kept in {workdir}; run the same command to go on"
