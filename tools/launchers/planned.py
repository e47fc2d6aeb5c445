"""The compiled check of a training that is to run on a TPU topology."""

import json
import subprocess
import sys

from serving.command import UserError
from tools.launchers.fits import training_arguments
from tools.launchers.job import Job
from trainer import config


def require_plan(job: Job) -> None:
    """Compiles the training step of `job` for its topology with `tools.plan`.

    Raises:
      UserError: when it cannot be compiled, or does not fit into the chips' memory.
    """
    arguments = training_arguments(job.command)
    if arguments is None or job.topology is None:
        raise UserError(
            "--plan compiles a training (python -m trainer.main …) for a --topology; this job has no such"
        )
    recipe, overrides, _ = config.split_config_args(arguments)
    given = [f"--config={recipe}", *(f"--config.{key}={value}" for key, value in overrides)]
    where = [f"--topology={job.topology.chip.name}:{job.topology.grid}", f"--slices={job.topology.slices}"]
    command = [sys.executable, "-m", "tools.plan", *given, *where, "--nolargest"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError("the training was not planned, for the reason above; nothing was started")
    result = json.loads(done.stdout.splitlines()[-1])
    if not result["fits"]:
        raise UserError(
            "the training does not fit into the chips' memory, as the table shows; nothing was started"
        )
