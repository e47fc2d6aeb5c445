"""The one device mesh of a job: axes data (replicas), fsdp (sharded parameters) and model (sharded heads and neurons)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from serving.command import UserError
from trainer.config import MeshShape
from trainer.config.fitting import sizes_on

AXES = ("data", "fsdp", "model")


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of the job (or `devices`) arranged as `shape`; a data size of -1 takes what the other axes leave.

    Axis types are Auto: the compiler propagates shardings from parameters and batch. Neighbours on an axis are neighbours in a
    slice; slices follow each other on the data axis, so that only gradients cross between them.

    Raises:
      UserError: when the axes do not multiply to the number of devices, or the devices are not in so many slices.
    """
    devices = jax.devices() if devices is None else devices
    slices = shape.slices
    within, types = sizes_on(shape, len(devices)), (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return Mesh(_in_a_slice(within, devices), AXES, axis_types=types)
    return Mesh(_over_slices(within, slices, devices), AXES, axis_types=types)


def _in_a_slice(within: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray[Any, Any]:
    """(data, fsdp, model) of devices, neighbours on an axis beside each other on the torus."""

    def arrange(split: bool) -> np.ndarray[Any, Any]:
        return np.asarray(mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=split))

    return _on_whole_axes_or_parts(arrange)


def _over_slices(
    within: tuple[int, int, int], slices: int, devices: Sequence[jax.Device]
) -> np.ndarray[Any, Any]:
    """(data · slices, fsdp, model) of devices; what JAX does not know as slices is cut by processes, as emulated ones are."""
    known = {getattr(device, "slice_index", None) for device in devices}
    by_process = known == {None} or len(known) == 1

    def arrange(split: bool) -> np.ndarray[Any, Any]:
        return np.asarray(
            mesh_utils.create_hybrid_device_mesh(
                within,
                (slices, 1, 1),
                devices,
                process_is_granule=by_process,
                allow_split_physical_axes=split,
            )
        )

    try:
        return _on_whole_axes_or_parts(arrange)
    except ValueError as error:
        have = len({device.process_index for device in devices} if by_process else known)
        kind = "processes" if by_process else "slices"
        raise UserError(
            f"mesh.slices={slices}, but the number of {kind} that the {len(devices)} devices are in is {have}; give that, or 1"
        ) from error


def _on_whole_axes_or_parts(arrange: Callable[[bool], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Each axis of the mesh on whole axes of the torus where that is possible, else on parts of them."""
    try:
        return arrange(False)
    except NotImplementedError:
        return arrange(True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first axis over every device that is not a model shard."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
