"""A teacher whose checkpoint was saved in shards is cut to the same model as one that was saved whole."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.support.small_models import SMALL, random_params, save_digits
from trainer import checkpoint
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
