"""Requests to stop (SIGTERM, Ctrl-C, a closed terminal) to a command that runs others: those hear of them first, and are awaited.

Children run in sessions of their own, so that Ctrl-C reaches them through us alone and once.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """Raised where the command stands when it is asked to stop; no Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class StopRequests:
    """Use as a context around the command's work; the handlers that were there before return at its end."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._child: subprocess.Popen[str] | None = None
        self._deferred = False

    def __enter__(self) -> "StopRequests":
        self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        if self._child is not None:
            self._pass_on(self._child, self.asked)
        elif not self._deferred:
            raise Stopped(self.asked)

    def _pass_on(self, child: "subprocess.Popen[str]", number: signal.Signals) -> None:
        print(f"\n{number.name}: passed on to the step, which saves and ends", file=sys.stderr, flush=True)
        # A closed terminal is a reason to save, too; a program that knows nothing of it would die of SIGHUP.
        child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While this lasts nothing is raised; what was asked meanwhile is raised at its end.

        Raises:
          Stopped: at the end.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.asked is not None:
            raise Stopped(self.asked)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        """Runs `command` to its end: its exit code, as `subprocess` tells it, and its stdout.

        A request to stop is passed on to it. Whether there was one stands in `asked`; nothing is raised here.
        """
        self._deferred = True
        child = start(command, environment)
        # In this order a request is passed on once, whenever it comes.
        early, self._child = self.asked, child
        if early is not None:
            self._pass_on(child, early)
        try:
            output, _ = child.communicate()
        finally:
            self._child, self._deferred = None, False
        return child.returncode, output


def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """`command` as a child in a session of its own, its stdout in a pipe."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
