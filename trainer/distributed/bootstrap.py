"""Joins this process to its job: as the launcher says, or as Slurm or a TPU slice does.

A process without any of these is a job of its own. The coordinator's port is fixed, so that a firewall can let it through.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

import jax

from serving.command import ExitCode, UserError
from trainer.distributed.roll_call import MissingError, roll_call

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "VITFORGE_COORDINATOR",
    "VITFORGE_NUM_PROCESSES",
    "VITFORGE_PROCESS_ID",
)
START_TIMEOUT_S = "VITFORGE_START_TIMEOUT_S"
PORT = 8476  # of the coordinator, where no launcher chose one
_PATIENCE_S = 300.0


@dataclasses.dataclass(frozen=True)
class Job:
    """Where the processes of a job meet, how many there are, and which one this is."""

    coordinator: str
    count: int
    index: int


def join_job() -> None:
    """Connects to the job that the environment names, if any; call once, before the first use of a device.

    Raises:
      UserError: when the variables contradict each other, or (lost peer) naming who did not come in time.
    """
    job = job_of(os.environ)
    if job is None or jax.distributed.is_initialized():
        return
    patience_s = _seconds(os.environ.get(START_TIMEOUT_S, ""))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        roll_call(job.coordinator, job.count, job.index, patience_s)
        jax.distributed.initialize(
            job.coordinator, job.count, job.index, initialization_timeout=max(1, round(patience_s))
        )
    except MissingError as error:
        raise UserError(f"process {job.index} of {job.count}: {error}", ExitCode.LOST_PEER) from error
    except (RuntimeError, ValueError, OSError) as error:
        message = f"process {job.index} of {job.count} could not join {job.coordinator} within {patience_s:g} s: {error}"
        raise UserError(message, ExitCode.LOST_PEER) from error


def job_of(environment: Mapping[str, str]) -> Job | None:
    """The job that the environment names: our launcher's variables, a Slurm step of several tasks, or a TPU slice of several hosts.

    Raises:
      UserError: when our own variables are incomplete, or hold no numbers.
    """
    present = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name in environment]
    if present:
        if len(present) < 3:
            raise UserError(
                f"of {COORDINATOR}, {NUM_PROCESSES}, {PROCESS_ID} only {', '.join(present)} is set; set all or none"
            )
        count, index = _whole(environment, NUM_PROCESSES), _whole(environment, PROCESS_ID)
        return Job(environment[COORDINATOR], count, index)
    return _slurm(environment) or _tpu(environment)


def _slurm(environment: Mapping[str, str]) -> Job | None:
    """As `srun` starts the tasks of a step; an allocation without a step is no job."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if not nodes or int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) < 2:
        return None
    count = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return Job(f"{first_host(nodes)}:{PORT}", int(count), int(environment["SLURM_PROCID"]))


def first_host(nodes: str) -> str:
    """The first of a Slurm node list: node[003-007,9] is node003."""
    found = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?([^,]*)", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} names no host")
    inside = re.match(r"[^,\-]+", found[2]) if found[2] else None
    return found[1] + (inside[0] if inside else "") + (found[3] or "")


def _tpu(environment: Mapping[str, str]) -> Job | None:
    """As a TPU slice names its hosts (Cloud TPU VMs of one slice, and GKE)."""
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) < 2 or "TPU_WORKER_ID" not in environment:
        return None
    return Job(f"{hosts[0]}:{PORT}", len(hosts), int(environment["TPU_WORKER_ID"]))


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is no whole number; the launcher sets it, or unset it to run alone")
    return int(text)


def _seconds(text: str) -> float:
    if not text:
        return _PATIENCE_S
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{START_TIMEOUT_S}={text!r} is no number of seconds") from error
    if not 0 < value < 1e6:
        raise UserError(f"{START_TIMEOUT_S}={text!r} must be above 0")
    return value
