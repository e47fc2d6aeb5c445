"""Training on eight devices gets the losses of training on one, however the mesh cuts batch and parameters."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.support import trainings
from tests.support.small_models import UNEVEN, random_params, save_digits
from trainer import config
from trainer.accumulation import mean_over
from trainer.config import Experiment, MeshShape
from trainer.distributed import rules
from trainer.distributed.mesh import batch_sharding, make_mesh, replicated
from trainer.forward import Forward
from trainer.models.build import Params
from trainer.models.layers import Layers
from trainer.models.regularisation import Regularisation
from trainer.train import train

# Eight devices add up in another order than one: sums over a batch of 32 differ by some 1e-7 of their size in float32, and six
# steps of Adam carry that along. A mean over a shard in place of the batch, a shard seen twice or a gradient that is not
# summed change a loss by 1e-2 and more.
SAME_LOSS = 1e-5
# In bfloat16 a product is rounded to 8 bits, and another order of adding rounds otherwise: some 1e-3 of a loss, which six steps of
# Adam, whose first have the gradient's sign alone, carry along. The mistakes above are larger still.
SAME_IN_HALF = 1e-2
STEPS, HALF = 6, 3
# What a role adds to a plain training: what is drawn must be drawn alike, and averages be averages of the same.
ROLES: dict[str, dict[str, object]] = {
    "trained": {},
    "distilled": {"distill_weight": 0.5},
    "regularised": {"mixup": 0.4, "cutmix": 1.0, "do": 0.1, "sd": 0.2, "ema_decay": 0.9},
    "in_half": {"distill_weight": 0.5, "dtype": "bfloat16"},
}
MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2)]


def experiment(folder: Path, role: str, mesh: tuple[int, int, int] = (1, 1, 1), **ways: object) -> Experiment:
    """A run of `role` from the models that `reference` made; both start from weights at which every gradient counts.

    `ways` change how a step is computed, not what it computes.
    """
    settings = {
        "image_size": 8,
        "pretrained": str(folder / "student"),
        "model": "",
        "teacher_weights": str(folder / "teacher") if "distill_weight" in ROLES[role] else "",
        "total_steps": STEPS,
        "warmup_steps": 1,
        "batch": 32,
        "base_lr": 0.01,
        "checkpoint_every": HALF,
        "eval_every": HALF,
        "log_every": 1,
        "workers": 0,
        **ROLES[role],
        **ways,
    }
    overrides = [(name, str(value)) for name, value in settings.items()]
    return dataclasses.replace(
        config.experiment("configs/digits.py:teacher", overrides), mesh=MeshShape(*mesh)
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student, teacher, and every role's run on one device: in a process of its own, as devices are counted once."""
    folder = tmp_path_factory.mktemp("reference")
    save_digits(folder / "student")
    # A teacher as pruning leaves them: no axis divides all of its dims, and one block lacks its attention.
    save_digits(folder / "teacher", UNEVEN, random_params(UNEVEN, seed=1))
    command = [sys.executable, "-m", "tests.devices.test_training_devices", str(folder)]
    done = subprocess.run(
        command,
        cwd=trainings.ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(trainings.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"devices": 1}
    return folder


def assert_same_losses(workdir: Path, reference: Path, tolerance: float = SAME_LOSS) -> None:
    ours, theirs = trainings.losses(workdir), trainings.losses(reference)
    assert list(theirs) == list(range(1, STEPS + 1))
    assert (
        abs(theirs[1] - theirs[STEPS]) > 10 * tolerance
    )  # the losses move, so that agreement means something
    assert ours == pytest.approx(theirs, rel=tolerance)


# With the plain step on every mesh, any two of mesh, role, parts, remat and loop meet in one of them.
WAYS: list[tuple[tuple[int, int, int], str, dict[str, object]]] = [
    *((mesh, role, {}) for mesh, role in itertools.product(MESHES, ["trained", "distilled"])),
    (MESHES[0], "distilled", {"accum_steps": 4, "remat": "blocks", "scan_blocks": True}),
    (MESHES[0], "trained", {"remat": "dots", "scan_blocks": True}),
    (MESHES[1], "trained", {"accum_steps": 2, "remat": "blocks", "scan_blocks": True}),
    (MESHES[1], "distilled", {"accum_steps": 2, "remat": "dots"}),
    (MESHES[2], "trained", {"accum_steps": 4, "remat": "dots", "scan_blocks": True}),
    (MESHES[2], "distilled", {"remat": "blocks"}),
    (MESHES[1], "regularised", {}),
    (MESHES[2], "in_half", {}),
]


@pytest.mark.parametrize(("mesh", "role", "ways"), WAYS)
def test_eight_devices_get_the_losses_of_one(
    mesh: tuple[int, int, int], role: str, ways: dict[str, object], reference: Path, tmp_path: Path
) -> None:
    result = train(experiment(reference, role, mesh, **ways), tmp_path / "run")
    assert result["stage"] == ("distilled" if "distill_weight" in ROLES[role] else "trained")
    tolerance = SAME_IN_HALF if role == "in_half" else SAME_LOSS
    assert_same_losses(tmp_path / "run", reference / role, tolerance)
    # All 180 examples count once: some batches of evaluation are padded, and cut over the devices.
    (last,) = (
        line
        for line in trainings.record(reference / role)
        if line.get("validation_count") and line["step"] == STEPS
    )
    assert result["validation_loss"] == pytest.approx(last["validation_loss"], rel=tolerance)
    assert last["validation_count"] == 180


def test_rows_stay_where_they_are_and_parameters_come_to_them() -> None:
    """Even where images come whole: by the parameters' shards alone, the compiler would cut by channels, or nothing at all."""
    mesh = make_mesh(MeshShape(1, 8, 1))
    model = dataclasses.replace(UNEVEN, width=32)
    forward = Forward("float32", Layers(lies=rules.activations(mesh)), Regularisation(0.0, 0.0))
    params = rules.place(random_params(model), mesh)
    images = jax.device_put(jnp.ones((16, *model.image_size, model.channels)), replicated(mesh))

    @jax.jit
    def streams(params: Params, images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(forward.outputs(model, params, images).blocks)

    for stream in streams(params, images):
        assert stream.sharding.is_equivalent_to(batch_sharding(mesh), stream.ndim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "role"), [(MESHES[0], "regularised"), (MESHES[2], "regularised"), (MESHES[0], "in_half")]
)
def test_what_is_drawn_or_rounded_is_the_same_on_every_mesh(
    mesh: tuple[int, int, int], role: str, reference: Path, tmp_path: Path
) -> None:
    train(experiment(reference, role, mesh), tmp_path / "run")
    tolerance = SAME_IN_HALF if role == "in_half" else SAME_LOSS
    assert_same_losses(tmp_path / "run", reference / role, tolerance)


def test_a_batch_in_parts_moves_no_example_to_another_device() -> None:
    mesh = make_mesh(MeshShape(4, 2, 1))
    batch = jax.ShapeDtypeStruct((32, 3), jnp.float32, sharding=batch_sharding(mesh))

    def summed(batch: jax.Array) -> jax.Array:
        return mean_over(2, lambda part, _: jnp.square(part).sum(axis=1).mean(), batch)

    compiled = jax.jit(summed).lower(batch).compile().as_text()
    assert "all-reduce" in compiled
    assert not re.search("all-gather|all-to-all|collective-permute", compiled)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_a_run_of_one_device_goes_on_on_eight(
    mesh: tuple[int, int, int], reference: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(reference / "distilled", tmp_path / "run")
    shutil.rmtree(workdir / f"checkpoints/{STEPS}")
    result = train(experiment(reference, "distilled", mesh), workdir)
    assert result["resumed_from"] == HALF
    assert_same_losses(workdir, reference / "distilled")


@pytest.mark.slow
def test_what_the_mesh_cannot_cut_is_replicated_and_said(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uneven = dataclasses.replace(
        experiment(reference, "trained", (1, 4, 2)), pretrained=str(reference / "teacher")
    )
    train(uneven, tmp_path / "run")
    log = capfd.readouterr().err
    assert "replicated: blocks/1/attention/query/kernel: 1 is not a multiple of model=2" in log
    assert all(loss == loss for loss in trainings.losses(tmp_path / "run").values())


def _on_one_device(folder: Path) -> None:
    import jax

    for role in ROLES:
        train(experiment(folder, role), folder / role)
    print(json.dumps({"devices": jax.device_count()}))


if __name__ == "__main__":
    _on_one_device(Path(sys.argv[1]))
