"""The collectives of programs that a compiler made, for eight devices."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tools.plan.collectives import collectives
from trainer.config import MeshShape
from trainer.distributed.mesh import make_mesh


def test_a_sum_inside_a_loop_counts_as_often_as_the_loop_goes_round() -> None:
    mesh = make_mesh(MeshShape(8, 1, 1))
    rows = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))

    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    def summed(part: jax.Array) -> jax.Array:
        def once(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(carry) + jax.lax.psum(carry, "data"), None

        return jax.lax.scan(once, part, None, length=5)[0]

    program = jax.jit(summed).lower(rows).compile().as_text()
    assert program is not None
    found = collectives(program)
    assert set(found) == {"all-reduce"}
    assert (found["all-reduce"].count, found["all-reduce"].bytes) == (5, 5 * 32 * 4)
    assert found["all-reduce"].sent_bytes == 5 * 32 * 4 * 2 * 7 / 8
