"""The one device mesh of a job: axes data (replicas), fsdp (sharded parameters) and model (sharded heads and neurons)."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from serving.command import UserError
from trainer.config import MeshShape

AXES = ("data", "fsdp", "model")


def make_mesh(shape: MeshShape) -> Mesh:
    """All devices of the job arranged as `shape`; a data size of -1 takes what the other axes leave.

    Axis types are Auto: the compiler propagates shardings from parameters and batch.

    Raises:
      UserError: when the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    rest = devices // (shape.fsdp * shape.model)
    data = rest if shape.data == -1 else shape.data
    if data * shape.fsdp * shape.model != devices:
        raise UserError(
            f"mesh data={shape.data} fsdp={shape.fsdp} model={shape.model} does not fit {devices} devices; "
            "their product must equal the number of devices (data=-1 takes the rest)"
        )
    return jax.make_mesh((data, shape.fsdp, shape.model), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first axis over every device that is not a model shard."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch: int, name: str, parts: int = 1) -> None:
    """Refuses a batch that the data and fsdp axes cannot share equally, each share in `parts` equal parts.

    Raises:
      UserError: naming the nearest batch sizes that fit.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    least = shards * parts
    if batch % least:
        lower = batch // least * least
        fits = f"{lower} or {lower + least}" if lower else f"{least}"
        over = f"{shards} data shards" + (f" in accum_steps={parts} parts each" if parts > 1 else "")
        raise UserError(f"{name}={batch} cannot be cut over {over}; use a multiple, such as {fits}")
