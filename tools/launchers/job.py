"""One job as every back end sees it, and what the exit code of a process means for the whole.

The codes are those of the table in `serving.command`, and the deaths of the runtime (128 + signal) that stand beside them.
"""

import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.command import ExitCode, UserError

RUNTIME_DEATHS = frozenset(
    128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
)
_TABLE = frozenset(ExitCode) | RUNTIME_DEATHS


@dataclass(frozen=True)
class Job:
    """A command that runs as several processes which find each other.

    Attributes:
      command: program and arguments, passed on as they are: no shell ever reads them.
      processes: how many run, numbered from 0; process 0 speaks for the job.
      devices_per_process: virtual CPU devices that JAX shows to each of them.
      env: variables set for every process, over those it inherits.
      logs_dir: where each process's output is kept as `process_N.log`; None keeps nothing.
      timeout_s: the job is stopped after so many seconds; None lets it take its time.
      grace_s: how long a process that was asked to end may take before it is killed.

    Raises:
      UserError: when a value makes no sense.
    """

    command: tuple[str, ...]
    processes: int = 1
    devices_per_process: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    logs_dir: Path | None = None
    timeout_s: float | None = None
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.command:
            raise UserError(
                "no command to run; write it behind --, as in: -- python -m trainer.main --config=…"
            )
        for name, value, least in (
            ("processes", self.processes, 1),
            ("devices_per_process", self.devices_per_process, 1),
            ("grace_s", self.grace_s, 0),
        ):
            if value < least:
                raise UserError(f"--{name}={value}: at least {least} is needed")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UserError(f"--timeout_s={self.timeout_s}: a time above 0 is needed, or none for no limit")

    def option(self, name: str) -> str:
        """What the command gives last as --NAME=VALUE or --NAME VALUE, "" where it does not."""
        given = ""
        for word, following in zip(self.command, (*self.command[1:], "")):
            if word.startswith(f"--{name}="):
                given = word.partition("=")[2]
            elif word == f"--{name}":
                given = following
        return given


def program(command: tuple[str, ...]) -> tuple[str, ...]:
    """`command` with its program found on this machine; `python` is the interpreter of the launcher itself.

    Raises:
      UserError: when there is no such program.
    """
    name, *arguments = command
    found = sys.executable if name in ("python", "python3") else shutil.which(name)
    if found is None:
        raise UserError(f"{name!r} is no program on this machine; give its path, or one that PATH holds")
    return (found, *arguments)


def table_code(code: int) -> int:
    """The code of the table for a process that ended with `code` as `subprocess` tells it (negative: by that signal)."""
    shell_code = 128 - code if code < 0 else code
    return shell_code if shell_code in _TABLE else ExitCode.BUG


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    return f"exit code {128 - code} ({signal.Signals(-code).name})"
