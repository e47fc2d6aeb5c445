"""Every process of a job on this machine: how tests and laptops stand in for a pod."""

import contextlib
import dataclasses
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from tools.launchers.gang import Gang, Member
from tools.launchers.job import Job, program
from tools.launchers.launcher import Finding, refuse_fields, refuse_secrets_of
from tools.launchers.restarts import Ended
from tools.launchers.running import newest_step
from tools.launchers.secrets import known_here
from trainer.distributed import jobs


@dataclasses.dataclass(frozen=True)
class LocalLauncher:
    """Runs jobs as child processes of this one, on virtual CPU devices."""

    def placed(self, job: Job) -> Job:
        program(job.command)
        refuse_secrets_of(job, "kubernetes")
        refuse_fields(job, "local", "topology", "venv", "port")
        return dataclasses.replace(
            job, processes=job.processes or 1, devices_per_process=job.devices_per_process or 1
        )

    def render(self, job: Job) -> dict[str, str]:
        """A script with the variables and the command of each process, a line each; `run` takes a free port."""
        command = shlex.join(program(job.command))
        lines = [
            " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), command])
            for environment in (
                _environment(job, index, f"127.0.0.1:{jobs.PORT}") for index in range(job.count)
            )
        ]
        return {"processes.sh": "\n".join(["#!/bin/sh", *(f"{line} &" for line in lines), "wait"]) + "\n"}

    def doctor(self, job: Job) -> list[Finding]:
        return [Finding(f"program {program(job.command)[0]}")]

    def prepare(self, job: Job) -> None:
        program(job.command)

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """Starts the processes, stays until all have ended, and returns one exit code of the table."""
        command, secrets = program(job.command), known_here(job.secrets)
        with _held_port() as port:
            members = [
                Member(command, _environment(job, index, f"127.0.0.1:{port}") | secrets)
                for index in range(job.count)
            ]
            return Gang(job, members, logs).run()

    def reached(self, job: Job) -> int | None:
        return newest_step(job)

    def release(self, job: Job) -> None:
        """There is nothing to give back."""


def _environment(job: Job, index: int, coordinator: str) -> dict[str, str]:
    return {"JAX_PLATFORMS": "cpu", **job.environment(index, coordinator), jobs.PORT_HELD: "1"}


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """A port for process 0 to be the coordinator on, held for as long as the job runs.

    A socket that is bound and never listens keeps others off: the kernel gives the port to nobody, and who asks for it by number
    is refused. With SO_REUSEPORT set on both sides, as gRPC sets it, a process of the same user may listen there all the same.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
