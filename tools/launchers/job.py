"""One job as every back end sees it, and what the exit code of a process means for the whole.

The codes are those of the table in `serving.command`, and the deaths of the runtime (128 + signal) that stand beside them.
"""

import dataclasses
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.command import ExitCode, UserError, require_no_url
from tools.plan.chips import Topology
from trainer.distributed import jobs

RUNTIME_DEATHS = frozenset(
    128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
)
_TABLE = frozenset(ExitCode) | RUNTIME_DEATHS
NAME = re.compile(
    r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
)  # of Kubernetes and Google Cloud, and short enough for what they append
PYTHON = ("python", "python3")


@dataclass(frozen=True)
class Job:
    """A command that runs as several processes which find each other.

    Attributes:
      command: program and arguments, passed on as they are: no shell ever reads them.
      name: what the job is known by; "" where nobody asks for it later.
      processes: how many run, numbered from 0; process 0 speaks for the job. None: as the back end's hosts say.
      devices_per_process: what JAX finds in each, and, where these are CPUs, what it is told to show. None: whatever is there.
      topology: slices of TPU chips to run on, whose hosts are the processes.
      env: variables set for every process, over those it inherits.
      secrets: variables whose values are known where the processes start: env:NAME, file:PATH or kubernetes:SECRET/KEY.
      venv: virtual environment on the hosts whose Python runs the command; "": the launcher's own, or what the host calls python3.
      port: of the coordinator, on the host of process 0; None: as the back end chooses.
      timeout_s: the job is stopped after so many seconds; None lets it take its time.
      grace_s: how long a process that was asked to end may take before it is killed.
      max_restarts: how often the job may start again after a death.

    Raises:
      UserError: when a value makes no sense.
    """

    command: tuple[str, ...]
    name: str = ""
    processes: int | None = None
    devices_per_process: int | None = None
    topology: Topology | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    venv: str = ""
    port: int | None = None
    timeout_s: float | None = None
    grace_s: float = 30.0
    max_restarts: int = 0

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
            if value is not None and value < least:
                raise UserError(f"--{name}={value}: at least {least} is needed")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UserError(f"--timeout_s={self.timeout_s}: a time above 0 is needed, or none for no limit")
        require_no_url(self.option("workdir"), "--workdir")
        if self.name and not NAME.fullmatch(self.name):
            raise UserError(
                f"--name={self.name} is refused by Kubernetes and Google Cloud; use lower-case letters, digits and '-', "
                "beginning with a letter, 40 at most"
            )

    @property
    def count(self) -> int:
        """Processes of a job that a back end has placed."""
        assert self.processes is not None
        return self.processes

    def option(self, name: str) -> str:
        """What the command gives last as --NAME=VALUE or --NAME VALUE, "" where it does not."""
        given = ""
        for word, following in zip(self.command, (*self.command[1:], "")):
            if word.startswith(f"--{name}="):
                given = word.partition("=")[2]
            elif word == f"--{name}":
                given = following
        return given

    def environment(self, index: int, coordinator: str) -> dict[str, str]:
        """The variables of process `index`, without secrets."""
        devices = self.devices_per_process
        return {
            "PYTHONUNBUFFERED": "1",
            **({"VITFORGE_PROGRESS": "off"} if index else {}),  # one bar speaks for all
            **({"JAX_NUM_CPU_DEVICES": str(devices)} if devices and not self.topology else {}),
            **self.env,
            jobs.COORDINATOR: coordinator,
            jobs.NUM_PROCESSES: str(self.count),
            jobs.PROCESS_ID: str(index),
        }

    def command_on_host(self) -> tuple[str, ...]:
        """The command for a host that is not this one: `python` is that of the job's virtual environment."""
        name, *arguments = self.command
        if name not in PYTHON:
            return self.command
        return (f"{self.venv}/bin/python" if self.venv else "python3", *arguments)


def on_topology(job: Job) -> Job:
    """`job`, which names a topology, with its processes and devices.

    Raises:
      UserError: when the job says something else.
    """
    assert job.topology
    hosts = job.topology.hosts * job.topology.slices
    for name, asked, there in (
        ("processes", job.processes, hosts),
        ("devices_per_process", job.devices_per_process, job.topology.chips_per_host),
    ):
        if asked not in (None, there):
            raise UserError(f"--{name}={asked}, but --topology has {there}; leave --{name} out")
    return dataclasses.replace(job, processes=hosts, devices_per_process=job.topology.chips_per_host)


def program(command: tuple[str, ...]) -> tuple[str, ...]:
    """`command` with its program found on this machine; `python` is the interpreter of the launcher itself.

    Raises:
      UserError: when there is no such program.
    """
    name, *arguments = command
    found = sys.executable if name in PYTHON else shutil.which(name)
    if found is None:
        raise UserError(f"{name!r} is no program on this machine; give its path, or one that PATH holds")
    return (found, *arguments)


def table_code(code: int) -> int:
    """The code of the table for a process that ended with `code` as `subprocess` tells it (negative: by that signal)."""
    shell_code = 128 - code if code < 0 else code
    return shell_code if shell_code in _TABLE else ExitCode.BUG


def ending(code: int) -> str:
    """How a process ended, in words; a shell's word for a death by a signal is 128 and its number."""
    shell_code = 128 - code if code < 0 else code
    death = f" ({signal.Signals(shell_code - 128).name})" if shell_code in RUNTIME_DEATHS or code < 0 else ""
    return f"exit code {shell_code}{death}"
