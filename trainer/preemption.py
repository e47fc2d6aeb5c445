"""Hears SIGTERM and Ctrl-C and says, at a step boundary on which all processes agree, that it is time to save and go.

Until the first step is done there is nothing to save, and compiling may take minutes: a request ends the process at once, by its
signal. From then on SIGTERM and the first Ctrl-C are answered after the step under way; a second Ctrl-C ends the process at once.
"""

import contextlib
import ctypes
import os
import signal
import sys
import types
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from serving.command import ExitCode

_DEFAULT = 0  # SIG_DFL to the C library


class Preemption:
    """Use as a context around building, training and the last evaluation; what listened before returns at its end."""

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._heard: signal.Signals | None = None
        self._asked = 0

    def __enter__(self) -> "Preemption":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        # In a job of several processes JAX's own service listens since the job was joined, below Python.
        self._service = None if self._alone else _replace_action(_DEFAULT)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        if self._alone:
            signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the first step: Ctrl-C, too, ends it at once, where Python would not see it before XLA returns."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        yield
        self._listen()

    def _listen(self) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._hear)
        else:
            _replace_action(self._service)
        signal.signal(signal.SIGINT, self._hear)

    def _hear(self, signum: int, frame: types.FrameType | None) -> None:
        self._heard = signal.Signals(signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            print(
                "\nCtrl-C: saving after this step; again: ends at once, without saving",
                file=sys.stderr,
                flush=True,
            )
            if not self._alone:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the others

    def due(self) -> bool:
        """Whether this process, like all others, has to stop here; all ask as often, after steps and batches of evaluation."""
        self._asked += 1
        if self._alone:
            return self._heard is not None
        return multihost_utils.reached_preemption_sync_point(self._asked)

    @property
    def exit_code(self) -> ExitCode:
        """How a process ends that has saved its state: nobody starts again what a person has stopped."""
        return ExitCode.INTERRUPTED if self._heard == signal.SIGINT else ExitCode.PREEMPTED


def _replace_action(action: int | None) -> int | None:
    """Sets what SIGTERM does below Python, and returns what it did; Python's own `signal` cannot put a foreign handler back."""
    set_action = ctypes.CDLL(None).signal
    set_action.restype, set_action.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return set_action(signal.SIGTERM, action)
