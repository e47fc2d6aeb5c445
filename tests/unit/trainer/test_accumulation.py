"""A batch in parts is the batch as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.accumulation import mean_over

BATCH = {"x": jnp.arange(24.0).reshape(12, 2), "row": jnp.arange(12)}


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_the_mean_over_parts_is_that_of_the_batch(parts: int) -> None:
    def run(part: dict[str, jax.Array], number: jax.Array | int) -> dict[str, jax.Array]:
        assert part["x"].shape == (12 // parts, 2)
        return {"mean": part["x"].mean(axis=0), "square": jnp.square(part["x"]).mean()}

    found = jax.jit(lambda batch: mean_over(parts, run, batch))(BATCH)
    np.testing.assert_allclose(found["mean"], BATCH["x"].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["square"], jnp.square(BATCH["x"]).mean(), rtol=1e-6)


def test_a_part_takes_every_third_example_and_each_is_in_one() -> None:
    """So it has as many of every shard as any other part, and none is moved."""
    taken = mean_over(3, lambda part, number: jnp.zeros((3, 4)).at[number].set(part["row"]), BATCH)
    np.testing.assert_allclose(3 * taken, np.arange(12).reshape(4, 3).T, rtol=1e-6)
