"""A step that does not fit into memory is refused in one line that says what would."""

import jax
import pytest

from tests.support import small_steps
from trainer import memory
from trainer.config import MeshShape
from trainer.distributed.mesh import make_mesh

TOO_LARGE = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.\nmore")


def advice(**settings: object) -> str:
    experiment = small_steps.Steps(batch=64, **settings).experiment
    return str(memory.refusal(TOO_LARGE, experiment, make_mesh(MeshShape(-1, 1, 1))))


@pytest.mark.parametrize(("optim", "rate"), [("sgd", "0.005"), ("adamw", "0.00707"), ("lion", "0.00707")])
def test_half_the_batch_comes_with_its_learning_rate(optim: str, rate: str) -> None:
    assert advice(optim=optim).endswith(f"or --config.batch=32 --config.base_lr={rate}")


def test_parts_come_first_and_what_is_in_use_is_not_proposed() -> None:
    said = advice()
    assert said.startswith(
        "out of memory: a step of batch=64 in accum_steps=1 parts does not fit (RESOURCE_EXHAUSTED: Out of"
    )
    assert "\n" not in said
    assert "use --config.accum_steps=2 (the same learning, in parts), or --config.remat=blocks" in said
    assert "remat" not in advice(remat="blocks")
    assert "accum_steps=64 parts" in advice(accum_steps=64)
    assert "mesh" in advice(accum_steps=64, remat="blocks")


def test_other_failures_are_not_taken_for_it() -> None:
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    experiment = small_steps.Steps(batch=64).experiment
    assert memory.refusal(error, experiment, make_mesh(MeshShape(-1, 1, 1))) is None
