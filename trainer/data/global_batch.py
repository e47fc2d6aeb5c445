"""From each process's share of a batch on the host to one global array over the mesh: the only file of this room with jax."""

import functools
from collections.abc import Mapping, Set

import jax
from jax.sharding import Mesh

from serving.command import UserError
from trainer.data.pipeline import HostBatch
from trainer.distributed.mesh import batch_sharding

_HOST_ONLY = ("index", "epoch")  # where rows came from; 64 bits that the device has no use for


@functools.lru_cache(maxsize=4)
def input_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of how many equal shares of every batch this process has to read.

    Processes whose devices hold the same rows, because the model axis spans them, have to read the same share.

    Raises:
      UserError: when processes hold the same rows in part.
    """
    return share_of(jax.process_index(), _held(mesh))


def readers(mesh: Mesh) -> list[int]:
    """Of each of the equal shards of a batch, in order, the share that its reader has."""
    held = _held(mesh)
    shares = {process: share_of(process, held)[0] for process in held}
    found = {shard: shares[process] for process, shards in held.items() for shard in shards}
    return [found[shard] for shard in sorted(found)]


def _held(mesh: Mesh) -> dict[int, set[int]]:
    """Process → the shards of a batch that its devices hold."""
    held: dict[int, set[int]] = {}
    # One row of devices per shard; those of a row differ by their place on the model axis.
    for shard, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["model"])):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    return held


def share_of(process: int, held: Mapping[int, Set[int]]) -> tuple[int, int]:
    """`input_share` of `process`, from the shards of a batch that each process holds."""
    groups = sorted({tuple(sorted(shards)) for shards in held.values()})
    if len(set().union(*groups)) != sum(map(len, groups)) or len(set(map(len, groups))) > 1:
        what = "processes hold the same shards of a batch in part"
        raise UserError(
            f"{what} ({groups}); choose a mesh whose model axis divides, or is a multiple of, a process's devices"
        )
    return groups.index(tuple(sorted(held[process]))), len(groups)


def to_global(batch: HostBatch, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays whose first axis is cut over data and fsdp; each process gives its `input_share`.

    The examples' index and epoch stay on the host.
    """
    sharding, shares = batch_sharding(mesh), input_share(mesh)[1]
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (len(rows) * shares, *rows.shape[1:]))
        for name, rows in batch.items()
        if name not in _HOST_ONLY
    }
