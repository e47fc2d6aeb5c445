"""From each process's share of a batch on the host to one global array over the mesh: the only file of this room with jax."""

import jax
from jax.sharding import Mesh

from trainer.data.pipeline import HostBatch
from trainer.distributed.mesh import batch_sharding


def to_global(batch: HostBatch, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays whose first axis is cut over data and fsdp; each process gives the rows of its own devices."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
