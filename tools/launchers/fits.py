"""Whether a recipe fits the devices of a job, by arithmetic, before any host is touched."""

from collections.abc import Sequence
from pathlib import Path

from serving.command import UserError
from tools.launchers.job import PYTHON, Job

_TRAINS = (("-m", "trainer.main"), ("vitforge", "train"))


def training_arguments(command: Sequence[str]) -> list[str] | None:
    """What a command that trains gives the trainer; None when it runs something else."""
    words = list(command)
    if (words and words[0] in PYTHON) or (words and words[0].rpartition("/")[2].startswith("python")):
        words = words[1:]
    return words[2:] if tuple(words[:2]) in _TRAINS else None


def recipe_file(command: Sequence[str]) -> Path | None:
    """The recipe's file of a command that trains, as it names it from the root of the code.

    Raises:
      UserError: when the file is not there, or lies elsewhere.
    """
    arguments = training_arguments(command)
    if arguments is None:
        return None
    from trainer.config import split_config_args

    given, _, _ = split_config_args(arguments)
    if not given:
        return None
    path = Path(given.partition(".py")[0] + ".py")
    if path.is_absolute() or ".." in path.parts or not path.is_file():
        raise UserError(
            f"--config={given}: there is no file {path} in this folder; name it from the root of the checkout"
        )
    return path


def require_fit(job: Job) -> None:
    """Refuses a training with wrong arguments, or whose mesh or batch does not fit the job's devices, where they are known.

    Raises:
      UserError: naming what does not fit, and what would.
    """
    arguments = training_arguments(job.command)
    if arguments is None or {"--help", "-h"} & set(arguments):
        return
    from trainer.arguments import training
    from trainer.config import fitting

    experiment, _ = training(arguments)
    if not job.devices_per_process:
        return
    slices = job.topology.slices if job.topology else experiment.mesh.slices
    if experiment.mesh.slices != slices:
        raise UserError(
            f"mesh.slices={experiment.mesh.slices}, but --slices={slices}; give both the same number, as with "
            f"--config.mesh.slices={slices}"
        )
    try:
        fitting.require_fit(experiment, job.count * job.devices_per_process)
    except UserError as error:
        raise UserError(f"{error} ({_devices(job)})") from error


def _devices(job: Job) -> str:
    where = f" of --topology={job.topology.chip.name}:{job.topology.grid}" if job.topology else ""
    return f"{job.count} processes with {job.devices_per_process} devices each{where}"
