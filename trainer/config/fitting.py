"""Whether a mesh fits some devices and a batch fits the mesh: arithmetic alone, so that a launcher can ask before it starts."""

from serving.command import UserError
from trainer.config.experiment import Experiment, MeshShape


def sizes_on(shape: MeshShape, devices: int) -> tuple[int, int, int]:
    """Devices along (data, fsdp, model) in each slice when `devices` of a job are arranged as `shape`.

    Raises:
      UserError: when the axes do not multiply to the number of devices.
    """
    rest = devices // (shape.slices * shape.fsdp * shape.model)
    data = rest if shape.data == -1 else shape.data
    if data * shape.slices * shape.fsdp * shape.model != devices:
        asked = f"data={shape.data} fsdp={shape.fsdp} model={shape.model}" + (
            f" slices={shape.slices}" if shape.slices > 1 else ""
        )
        raise UserError(
            f"mesh {asked} does not fit {devices} devices; "
            "their product must equal the number of devices (data=-1 takes the rest)"
        )
    return data, shape.fsdp, shape.model


def check_batch(shards: int, batch: int, name: str, parts: int = 1) -> None:
    """Refuses a batch that so many shards cannot share equally, each share in `parts` equal parts.

    Raises:
      UserError: naming the nearest batch sizes that fit.
    """
    least = shards * parts
    if batch % least:
        lower = batch // least * least
        fits = f"{lower} or {lower + least}" if lower else f"{least}"
        over = f"{shards} data shards" + (f" in accum_steps={parts} parts each" if parts > 1 else "")
        raise UserError(f"{name}={batch} cannot be cut over {over}; use a multiple, such as {fits}")


def require_fit(experiment: Experiment, devices: int) -> None:
    """Refuses a run whose mesh does not fit so many devices, or whose batches do not fit its mesh; raises as the others do."""
    data, fsdp, _ = sizes_on(experiment.mesh, devices)
    shards = data * fsdp * experiment.mesh.slices
    check_batch(shards, experiment.batch, "batch", experiment.accum_steps)
    check_batch(shards, experiment.batch_eval, "batch_eval")
