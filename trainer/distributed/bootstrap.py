"""Joins this process to its job, from what the launcher left in the environment.

A process without these variables is a job of its own. Clusters that JAX detects by itself come with their launcher back ends.
"""

import os

import jax

from serving.command import ExitCode, UserError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "VITFORGE_COORDINATOR",
    "VITFORGE_NUM_PROCESSES",
    "VITFORGE_PROCESS_ID",
)
_START_TIMEOUT_S = 300


def join_job() -> None:
    """Connects to the coordinator named in the environment, if any; call once, before the first use of a device.

    Raises:
      UserError: when the variables contradict each other, or (lost peer) when not everybody came in time.
    """
    present = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name in os.environ]
    if not present:
        return
    if len(present) < 3:
        raise UserError(
            f"of {COORDINATOR}, {NUM_PROCESSES}, {PROCESS_ID} only {', '.join(present)} is set; set all or none"
        )
    if jax.distributed.is_initialized():
        return
    address, count, index = os.environ[COORDINATOR], _whole(NUM_PROCESSES), _whole(PROCESS_ID)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=_START_TIMEOUT_S)
    except (RuntimeError, ValueError) as error:
        message = f"process {index} of {count} could not join {address} within {_START_TIMEOUT_S} s: {error}"
        raise UserError(message, ExitCode.LOST_PEER) from error


def _whole(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is no whole number; the launcher sets it, or unset it to run alone")
    return int(text)
