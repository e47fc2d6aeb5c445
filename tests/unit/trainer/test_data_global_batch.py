"""From shares of a batch on the hosts to global arrays."""

import jax
import numpy as np
import pytest

from serving.command import UserError
from trainer.config import MeshShape
from trainer.data.global_batch import input_share, share_of, to_global
from trainer.distributed.mesh import batch_sharding, make_mesh


def test_a_host_batch_becomes_global_arrays_and_its_places_stay_behind() -> None:
    mesh = make_mesh(MeshShape(data=-1, fsdp=1, model=1))
    rows = 2 * jax.device_count()
    batch = {"image": np.full((rows, 4, 4, 1), 7, np.uint8), "index": np.arange(rows)}
    there = to_global(batch, mesh)
    assert there.keys() == {"image"}
    assert there["image"].sharding == batch_sharding(mesh)
    assert np.array_equal(there["image"], batch["image"])
    assert there["image"].dtype == np.uint8


def test_a_process_alone_reads_whole_batches() -> None:
    assert input_share(make_mesh(MeshShape(data=-1, fsdp=1, model=1))) == (0, 1)


@pytest.mark.parametrize(
    ("held", "shares"),
    [
        ({0: {0, 1}, 1: {2, 3}}, [(0, 2), (1, 2)]),
        ({0: {2, 3}, 1: {0, 1}}, [(1, 2), (0, 2)]),
        # The model axis spans processes: they hold, and so have to read, the same rows.
        ({0: {0}, 1: {0}}, [(0, 1), (0, 1)]),
        ({0: {0}, 1: {0}, 2: {1}, 3: {1}}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_processes_with_the_same_rows_read_the_same_share(
    held: dict[int, set[int]], shares: list[tuple[int, int]]
) -> None:
    assert [share_of(process, held) for process in sorted(held)] == shares


def test_processes_that_hold_the_same_rows_in_part_are_refused() -> None:
    with pytest.raises(UserError, match="hold the same shards of a batch in part"):
        share_of(0, {0: {0, 1}, 1: {1, 2}})
