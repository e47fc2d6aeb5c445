"""Joins this process to its job. A process that belongs to none is a job of its own.

The coordinator's port is fixed (VITFORGE_PORT names another one), so that a firewall can let it through.
"""

import os

import jax

from serving.command import ExitCode, UserError
from trainer.distributed.jobs import OWN_PORT, job_of, metadata
from trainer.distributed.roll_call import MissingError, roll_call

START_TIMEOUT_S = "VITFORGE_START_TIMEOUT_S"
_PATIENCE_S = 300.0


def join_job() -> None:
    """Connects to the job that the environment names, if any; call once, before the first use of a device.

    Raises:
      UserError: when the variables contradict each other, or (lost peer) naming who did not come in time.
    """
    if jax.distributed.is_initialized():
        return
    job = job_of(os.environ, metadata())
    if job is None:
        return
    patience_s = _seconds(os.environ.get(START_TIMEOUT_S, ""))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        roll_call(job, patience_s)
        # Left to look for itself, JAX would take one device by the task's number on its node, where a task has all of them.
        jax.distributed.initialize(
            job.coordinator,
            job.count,
            job.index,
            initialization_timeout=max(1, round(patience_s)),
            cluster_detection_method="deactivate",
        )
    except MissingError as error:
        raise UserError(f"process {job.index} of {job.count}: {error}", ExitCode.LOST_PEER) from error
    except OSError as error:
        raise UserError(
            f"process {job.index} of {job.count} cannot listen at {job.coordinator} ({error}); if another job does, give this one "
            f"another port with {OWN_PORT}",
            ExitCode.LOST_PEER,
        ) from error
    except (RuntimeError, ValueError) as error:
        message = f"process {job.index} of {job.count} could not join {job.coordinator} within {patience_s:g} s: {error}"
        raise UserError(message, ExitCode.LOST_PEER) from error


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
