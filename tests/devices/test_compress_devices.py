"""What compression does on eight devices is what it does on one."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.support.small_models import SMALL, random_params, save_digits, smooth_images
from trainer import checkpoint
from trainer.compress import scores
from trainer.compress.__main__ import main
from trainer.models.build import flatten


def _in_shards(array: np.ndarray) -> jax.Array:
    """`array` laid over all eight devices along the first axis that they divide; whole on each where none is."""
    mesh = Mesh(np.asarray(jax.devices()), ("fsdp",))
    axis = next((axis for axis, size in enumerate(array.shape) if size % jax.device_count() == 0), None)
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")
    return jax.device_put(array, NamedSharding(mesh, spec))


def test_a_checkpoint_saved_in_shards_is_cut_to_the_same_model_as_one_saved_whole(tmp_path: Path) -> None:
    params = random_params(SMALL)
    sharded = jax.tree.map(_in_shards, params)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(sharded))
    save_digits(tmp_path / "whole", SMALL, params)
    save_digits(tmp_path / "shards", SMALL, sharded)
    for name in ("whole", "shards"):
        main(
            [
                f"--checkpoint={tmp_path / name}",
                f"--workdir={tmp_path / name}-cut",
                "--config=configs/compress.py",
                "--config.calibration.examples=128",
                "--config.calibration.batch=64",
                "--config.shape.hidden_size=12",
                "--config.shape.mlp_dim=16",
            ]
        )
    whole, shards = (checkpoint.load(tmp_path / f"{name}-cut") for name in ("whole", "shards"))
    assert whole.description == shards.description
    found = flatten(shards.params)
    for name, array in flatten(whole.params).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("kind", ["fisher", "taylor", "obs"])
def test_scores_cut_over_eight_devices_are_those_of_one(kind: str, shape: tuple[int, int, int]) -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, 90)
    axes = ("data", "fsdp", "model")
    one, eight = (
        Mesh(np.asarray(jax.devices()[: np.prod(sizes)]).reshape(sizes), axes) for sizes in ((1, 1, 1), shape)
    )
    # Neither 36 nor the last 18 is a multiple of eight: what fills up must not count.
    wanted, found = (flatten(scores.score(SMALL, params, images, kind, 0, 36, mesh)) for mesh in (one, eight))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        # float32 sums in another order.
        np.testing.assert_allclose(
            found[name], values, rtol=1e-4, atol=1e-6 * np.abs(values).max(), err_msg=name
        )
