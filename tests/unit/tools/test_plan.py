"""A plan's parts that need no TPU compiler: names of topologies, what is known without data, collectives in a program's text."""

import json
import os
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from serving.command import UserError
from tests.support.trainings import ROOT
from tools.plan import compiled
from tools.plan.chips import topology
from tools.plan.collectives import collectives
from tools.plan.described import Described, described
from trainer import config
from trainer.config import Experiment


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [("v5e:16x16", "v5e:16x16", 256), ("v5p:2x2x4", "v5:2x2x4", 16), ("v6e:2x4", "v6e:2x4", 8)],
)
def test_topologies_by_the_names_that_users_know(text: str, name: str, chips: int) -> None:
    found = topology(text, 2)
    assert (found.name, found.slices) == (name, 2)
    count = 1
    for size in found.shape:
        count *= size
    assert count == chips


@pytest.mark.parametrize(
    ("text", "slices", "said"),
    [
        ("v7:2x2", 1, "'v7' must be one of v4, v5e, v5p, v6e"),
        ("v5e:16", 1, "v5e has 2 dimensions, as in v5e:4x4"),
        ("v5p:4x4", 1, "v5p has 3 dimensions, as in v5p:2x2x4"),
        ("v5e:0x4", 1, "v5e has 2 dimensions"),
        ("v5e:2x2", 0, "--slices=0 must be at least 1"),
    ],
)
def test_other_topologies_are_refused(text: str, slices: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        topology(text, slices)


TEACHER = {"teacher_model": "L_16", "teacher_weights": "nowhere.npz", "distill_weight": "0.5"}


def experiment(**values: str) -> Experiment:
    return config.experiment("configs/augreg.py:Ti_16", list(values.items()))


def test_a_plan_needs_neither_data_nor_weights() -> None:
    parts = described(
        experiment(**TEACHER, total_epochs="3"),
        1000,
    )
    assert parts.teacher is not None
    assert (parts.student.num_classes, parts.teacher.num_classes) == (1000, 1000)
    assert parts.experiment.total_steps > parts.experiment.warmup_steps
    assert described(experiment(dataset="cifar100"), 0).student.num_classes == 100
    grey = described(experiment(dataset="mnist"), 0)
    assert (grey.student.channels, grey.preprocess.channels) == (1, 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset": "folder:photos"}, "how many classes folder:photos has is not known"),
        ({"model": "", "pretrained": "x"}, "needs config.model"),
        ({"distill_weight": "0.5", "teacher_weights": "x"}, "needs config.teacher_model"),
        (
            {**TEACHER, "teacher_cache": "x", "teacher_epochs": "2"},
            "stored answers come with the batch; leave teacher_cache empty",
        ),
        ({"dataset": "pairs:x.jsonl", "text.vocab": "x"}, "are images with texts; plans are of classifiers"),
        (
            {"feature_weight": "1", "teacher_weights": "x", "teacher_model": "L_16"},
            "knows no weights to match features by",
        ),
    ],
)
def test_what_only_data_or_weights_could_tell_is_asked_for(values: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        described(experiment(**values), 0)


_PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[16,8]) -> bf16[16,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  ROOT %inner = bf16[16,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%body (state: (s32[], f32[64])) -> (s32[], f32[64]) {
  %state = (s32[], f32[64]{0}) parameter(0)
  %gathered = f32[256]{0} all-gather(%value), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %next = (s32[], f32[64]{0}) tuple(%count, %value)
}

%condition (state: (s32[], f32[64])) -> pred[] {
  %limit = s32[] constant(24)
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %known = (s32[], f32[64]{0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %counted = (s32[], f32[64]{0}) while(%start), condition=%condition, body=%body
  %fusion = bf16[16,8]{1,0} fusion(%y), kind=kCustom, calls=%fused
  %begun = (f32[8]{0}, f32[32]{0}) all-gather-start(%z), replica_groups=[2,4]<=[8], dimensions={0}
  %ended = f32[32]{0} all-gather-done(%begun)
  ROOT %moved = f32[64]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""


def test_collectives_count_as_often_as_they_run() -> None:
    found = collectives(_PROGRAM)
    assert set(found) == {"all-gather", "all-reduce", "collective-permute"}
    gathered, reduced, moved = found["all-gather"], found["all-reduce"], found["collective-permute"]
    assert (gathered.count, gathered.bytes) == (12 + 24 + 1, 36 * 1024 + 128)
    assert gathered.sent_bytes == pytest.approx(gathered.bytes * 3 / 4)
    assert (reduced.count, reduced.bytes, reduced.sent_bytes) == (1, 256, 256 * 2 * 3 / 4)
    assert (moved.count, moved.bytes, moved.sent_bytes) == (1, 256, 256)


def test_the_largest_batch_is_looked_for_downwards_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 768 on 256 shards, 256 fits: half of 3 shares each is 1."""
    parts = described(experiment(batch="768"), 10)

    class Mesh:
        shape: ClassVar = {"data": 256, "fsdp": 1, "model": 1}

    def fits_up_to(most: int) -> None:
        tried.clear()

        def fitting(plan: Described, *_: object) -> object | None:
            tried.append(plan.experiment.batch)
            return "step" if plan.experiment.batch <= most else None

        monkeypatch.setattr(compiled, "_fitting", fitting)

    tried: list[int] = []
    fits_up_to(300)
    assert compiled.largest_batch(parts, Mesh, None, 1.0) == (256, "step")  # type: ignore[arg-type]
    assert tried == [256]
    fits_up_to(0)
    assert compiled.largest_batch(parts, Mesh, None, 1.0) == (0, None)  # type: ignore[arg-type]


needs_compiler = pytest.mark.skipif(
    not (ROOT / ".venv-plan/.ready").is_file(), reason="make plan installs the TPUs' compiler"
)


def plan(topology: str, *arguments: str) -> dict[str, Any]:
    recipe = ["--config=configs/augreg.py:Ti_16", "--classes=10", "--config.image_size=32", "--json"]
    command = ["tools.plan", f"--topology={topology}", *recipe, *arguments]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
@needs_compiler
def test_a_step_is_compiled_for_a_pod() -> None:
    result = plan("v5e:2x2", "--config.batch=32", "--config.scan_blocks=True", "--config.mesh.fsdp=2")
    assert result["fits"]
    assert result["mesh"] == {"data": 2, "fsdp": 2, "model": 1}
    assert result["collectives"]
    assert result["params_mib"] * 2 == pytest.approx(5.4e6 * 4 / 2**20, rel=0.1)
    assert result["largest_batch"] > 32
    assert 0 < result["mfu_bound"] <= 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("topology", "slices", "devices"), [("v4:2x2x1", 1, 4), ("v5p:2x2x1", 2, 8), ("v6e:2x2", 2, 8)]
)
def test_every_kind_of_chip_and_several_slices_have_plans(topology: str, slices: int, devices: int) -> None:
    distilled = [
        "--config.teacher_model=S_16",
        "--config.teacher_weights=S_16.npz",
        "--config.distill_weight=0.5",
    ]
    result = plan(
        topology,
        f"--slices={slices}",
        *distilled,
        "--config.batch=64",
        "--config.dtype=bfloat16",
        "--nolargest",
    )
    assert result["fits"]
    assert (result["slices"], result["devices"]) == (slices, devices)
    assert result["mesh"]["data"] == devices
    # Half of the teacher's float32: it is asked in bfloat16, and every replica has all of it.
    assert result["teacher_mib"] == pytest.approx(21.6e6 * 2 / 2**20, rel=0.1)


@pytest.mark.slow
@needs_compiler
def test_what_does_not_fit_is_said_with_the_batch_that_does() -> None:
    large = [
        "--config.model=B_16",
        "--config.image_size=224",
        "--config.batch=4096",
        "--config.scan_blocks=True",
    ]
    result = plan("v5e:2x2", *large)
    assert not result["fits"]
    assert 0 < result["largest_batch"] < 4096


_MESH = """
from jax.experimental import topologies
from tools.plan import chips
from trainer.config import MeshShape
from trainer.distributed.mesh import make_mesh
where = chips.topology("v5p:4x4x4", 2)
devices = topologies.get_topology_desc(where.name, "tpu", num_slices=2).devices
mesh = make_mesh(MeshShape(-1, 8, 1, 2), devices)
assert dict(mesh.shape) == {"data": 16, "fsdp": 8, "model": 1}, mesh.shape
slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
assert slices == [{0}] * 8 + [{1}] * 8, slices
"""


@pytest.mark.slow
@needs_compiler
def test_slices_are_replicas_that_follow_each_other_even_on_parts_of_the_torus() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": str(ROOT)}
    python = ROOT / ".venv-plan/bin/python"
    done = subprocess.run([python, "-c", _MESH], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("batch", "code"), [(64, 0), (16384, 2)])
def test_a_launch_with_a_plan_starts_only_what_fits(batch: int, code: int) -> None:
    job = [
        "--backend=tpu_vm",
        "--project=p",
        "--zone=z",
        "--name=x",
        "--topology=v5e:2x2",
        "--plan",
        "--dry_run",
    ]
    training = ["--config=configs/augreg.py:Ti_16", "--workdir=/runs/x", "--config.dataset=cifar10"]
    command = [
        "--",
        "python",
        "-m",
        "trainer.main",
        *training,
        f"--config.batch={batch}",
        "--config.batch_eval=64",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tools.launch", "run", *job, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert ("create.sh" in done.stdout) == (code == 0)
    assert ("error: the training does not fit into the chips' memory" in done.stderr) == (code == 2)
