"""The training loop in this process; what it takes to interrupt it for real is in tests/processes."""

import dataclasses
import itertools
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from serving.bundle import read_bundle
from serving.command import UserError
from tests.support import pictures, trainings
from tests.support.small_models import SMALL, random_params, save_digits
from trainer import checkpoint, config, step, tasks
from trainer import train as loop
from trainer.checkpoint import Card, State
from trainer.data import datasets
from trainer.export.__main__ import main as export
from trainer.models.build import flatten
from trainer.train import train


class _KilledError(Exception):
    """Stands for a kill at the moment when a save begins."""


@pytest.mark.parametrize(("eval_every", "evaluated"), [(2, [2]), (3, [])])
def test_when_a_checkpoint_is_written_the_record_up_to_it_is_complete(
    eval_every: int, evaluated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that goes on from it would lack lines of the steps before."""

    def kill(self: checkpoint.TrainCheckpoints, state: State, card: Card, top1: float | None = None) -> None:
        raise _KilledError

    save_digits(tmp_path / "small")
    values = {
        "shape_of": str(tmp_path / "small"),
        "image_size": 8,
        "total_steps": 4,
        "warmup_steps": 1,
        "batch": 32,
    }
    every = {"log_every": 1, "eval_every": eval_every, "checkpoint_every": 2}
    overrides = [(name, str(value)) for name, value in (values | every).items()]
    monkeypatch.setattr(checkpoint.TrainCheckpoints, "save", kill)
    with pytest.raises(_KilledError):
        train(config.experiment("configs/digits.py:scratch", overrides), tmp_path / "run")
    record = trainings.record(tmp_path / "run")
    assert [line["step"] for line in record if "loss" in line] == [1, 2]
    assert [line["step"] for line in record if "validation_top1" in line] == evaluated


def _settings(recipe: str, **values: object) -> config.Experiment:
    """Two steps of a small model."""
    small = {"image_size": 8, "total_steps": 2, "warmup_steps": 1, "batch": 32, "checkpoint_every": 1}
    overrides = [(name, str(value)) for name, value in (small | values).items()]
    return config.experiment(f"configs/digits.py:{recipe}", overrides)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cut model, a teacher, and the finished run that distilled one into the other."""
    folder = tmp_path_factory.mktemp("student")
    save_digits(folder / "cut", stage="pruned", calibration_hash="of the images")
    save_digits(folder / "teacher", params=random_params(SMALL, seed=1))
    train(_distillation(folder), folder / "run")
    return folder


def _distillation(folder: Path) -> config.Experiment:
    return _settings("student", pretrained=folder / "cut", teacher_weights=folder / "teacher")


def test_the_same_weights_under_other_paths_are_the_same_run(student: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(student, tmp_path / "moved")
    record = trainings.record(student / "run")
    assert [line["step"] for line in record if "validation_top1" in line] == [2]
    assert train(_distillation(moved), student / "run")["resumed_from"] == 2
    assert trainings.record(student / "run") == record  # a finished run adds nothing


@pytest.mark.parametrize(
    ("which", "named"), [("cut", "other pretrained weights"), ("teacher", "another teacher")]
)
def test_other_weights_under_the_same_path_are_another_run(
    which: str, named: str, student: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student, tmp_path / "again")
    shutil.rmtree(folder / which)
    save_digits(folder / which, params=random_params(SMALL, seed=2))
    files = trainings.files(folder)
    with pytest.raises(
        UserError, match=rf"run holds a run with {named}: [0-9a-f]+ there, [0-9a-f]+ now; give"
    ):
        train(_distillation(folder), folder / "run")
    assert trainings.files(folder) == files


def test_another_shape_under_the_same_path_is_another_run(tmp_path: Path) -> None:
    settings = _settings("scratch", shape_of=tmp_path / "shape")
    save_digits(tmp_path / "shape")
    train(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "shape")
    save_digits(tmp_path / "shape", dataclasses.replace(SMALL, width=8))
    with pytest.raises(
        UserError, match=r"a model of another shape: 4,986 parameters \S+ \w+\) there, 2,578 parameters"
    ):
        train(settings, tmp_path / "run")


def test_a_run_begun_anew_is_not_taken_for_one_that_began_with_weights(student: Path) -> None:
    with pytest.raises(UserError, match=r"other pretrained weights: \w{64} there, none now"):
        train(
            _settings("student", shape_of=student / "cut", teacher_weights=student / "teacher"),
            student / "run",
        )


def test_the_calibration_images_of_a_cut_are_named_by_the_bundle_of_its_student(
    student: Path, tmp_path: Path
) -> None:
    assert checkpoint.load_card(student / "run").meta["calibration_hash"] == "of the images"
    export([f"--checkpoint={student / 'run'}", f"--output={tmp_path / 'student' / '1'}", "--threads=1"])
    provenance = read_bundle(tmp_path / "student" / "1").manifest.provenance
    assert (provenance.stage, provenance.calibration_hash) == ("distilled", "of the images")


def test_a_cut_model_is_no_workdir_to_train_in_and_is_kept(student: Path) -> None:
    files = trainings.files(student / "cut")
    with pytest.raises(UserError) as refused:
        train(_settings("scratch", shape_of=student / "cut"), student / "cut")
    assert str(refused.value) == (
        f"{student / 'cut'} holds a pruned model, not a training run; give another --workdir "
        f"(to train this model further, with --config.pretrained={student / 'cut'})"
    )
    assert trainings.files(student / "cut") == files


def test_bad_input_leaves_no_workdir_behind(tmp_path: Path) -> None:
    overrides = [("shape_of", str(tmp_path / "nowhere"))]
    with pytest.raises(UserError, match="no checkpoint under"):
        train(config.experiment("configs/digits.py:scratch", overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_its_parts_do_not_divide_is_refused_with_the_nearest_that_they_do(
    tmp_path: Path,
) -> None:
    save_digits(tmp_path / "small")
    settings = _settings("scratch", shape_of=str(tmp_path / "small"), accum_steps=3)
    with pytest.raises(
        UserError, match=r"batch=32 cannot be cut over 1 data shards in accum_steps=3 parts .* 30 or 33"
    ):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_shown_what_the_record_says_and_a_profile_is_taken(tmp_path: Path) -> None:
    save_digits(tmp_path / "small")
    settings = _settings(
        "scratch", shape_of=tmp_path / "small", total_steps=6, log_every=2, profile_steps="3,4", ema_decay=0.9
    )
    result = train(settings, tmp_path / "run")
    record = trainings.record(tmp_path / "run")
    shown = {
        (event.step, value.tag): value.simple_value
        for event in _events(tmp_path / "run/tensorboard")
        for value in event.summary.value
    }
    said = {(line["step"], name): value for line in record for name, value in line.items() if name != "step"}
    assert shown == pytest.approx(said, rel=1e-6)
    assert {"loss", "lr", "images_per_s", "input_wait", "goodput", "validation_top1"} <= {
        name for _, name in shown
    }
    assert shown[2, "lr"] == pytest.approx(settings.base_lr)  # step 2 is the first behind the warm-up
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert 0 < result["goodput"] < 1
    assert {"start", "compile", "input", "evaluate", "save"} == set(result["spent_s"])

    # The average is what is read, exported and goes on.
    folder = tmp_path / "run/checkpoints/6"
    assert (folder / "ema").is_dir()
    trained = checkpoint.load(folder).params
    shutil.rmtree(folder / "ema")
    assert not np.array_equal(checkpoint.load(folder).params["pos"], trained["pos"])


def test_a_class_map_that_changed_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures.write_folder(tmp_path / "photos")
    monkeypatch.setattr(datasets, "_CACHE", tmp_path / "cache")
    values = {"dataset": f"folder:{folder}", "model": "Ti_16", "image_size": 16, "batch": 8, "batch_eval": 8}
    small = config.experiment(
        "configs/augreg.py",
        [(name, str(value)) for name, value in ({"total_steps": 1, "warmup_steps": 0} | values).items()],
    )
    train(small, tmp_path / "run")
    (folder / "china").rename(folder / "zebra")
    monkeypatch.setattr(step, "init_state", lambda *_: pytest.fail("computed"))
    with pytest.raises(
        UserError, match=r"other classes: \['china', 'flower'\] there, \['flower', 'zebra'\] now"
    ):
        train(small, tmp_path / "run")


@pytest.mark.parametrize(("better", "kept"), [(True, [12]), (False, [2, 12])])
def test_the_best_checkpoint_stays_and_the_last_one_competes(
    better: bool, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = itertools.count(1) if better else itertools.count(9, -1)

    def evaluate(*_: object) -> dict[str, float]:
        return {"top1": next(scores) / 10, "loss": 1.0, "count": 180.0}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    save_digits(tmp_path / "small")
    long = {"shape_of": tmp_path / "small", "total_steps": 12, "checkpoint_every": 2, "eval_every": 2}
    run = _settings("scratch", **long, keep_last=1, keep_best=1, base_lr=0.01)
    train(run, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == kept


def test_an_evaluation_that_was_cut_off_is_made_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_to_stop(*given: Any) -> dict[str, float]:
        *_, after_a_batch = given
        signal.raise_signal(signal.SIGTERM)
        after_a_batch()
        raise AssertionError

    save_digits(tmp_path / "small")
    run = _settings("scratch", shape_of=tmp_path / "small", total_steps=4, checkpoint_every=3, eval_every=2)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", asked_to_stop)
        with pytest.raises(UserError, match="preempted: saved step 2 in"):
            train(run, tmp_path / "run")
    assert not any("validation_top1" in line for line in trainings.record(tmp_path / "run"))
    train(run, tmp_path / "run")
    evaluated = [line["step"] for line in trainings.record(tmp_path / "run") if "validation_top1" in line]
    assert evaluated == [2, 4]


def test_keeping_the_best_needs_checkpoints_that_are_evaluated() -> None:
    with pytest.raises(UserError, match="checkpoint_every=3 must be a multiple of eval_every=2"):
        _settings("scratch", keep_best=1, checkpoint_every=3, eval_every=2)


def test_who_goes_on_with_another_number_format_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_digits(tmp_path / "small")
    ways = {"shape_of": tmp_path / "small", "eval_every": 4, "checkpoint_every": 2}
    train(_settings("scratch", **ways), tmp_path / "run")
    changed = _settings("scratch", **ways)
    changed = dataclasses.replace(changed, dtype="bfloat16", accum_steps=2)
    shutil.rmtree(tmp_path / "run/checkpoints/2")
    train(_settings("scratch", **ways | {"checkpoint_every": 1}), tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/2")
    train(changed, tmp_path / "run")
    said = capsys.readouterr().err
    assert "accum_steps: 1 before, 2 from here on\ndtype: float32 before, bfloat16 from here on\n" in said
    assert {str(array.dtype) for array in flatten(checkpoint.load(tmp_path / "run").params).values()} == {
        "float32"
    }


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "init_state",
            "parameters, what the optimiser keeps and the teacher do not fit .* larger --config.mesh.fsdp",
        ),
        (
            "make_train_step",
            "a step of batch=32 in accum_steps=1 parts does not fit .* use --config.accum_steps=2",
        ),
        (
            "make_eval_step",
            "evaluating batch_eval=256 images at a time does not fit .* --config.batch_eval=128",
        ),
    ],
)
def test_wherever_memory_ends_one_line_says_what_would_fit(
    broken: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.")

    save_digits(tmp_path / "small")
    run = _settings("scratch", shape_of=tmp_path / "small", batch_eval=256)
    if broken == "init_state":
        monkeypatch.setattr(step, "init_state", too_large)
    elif broken == "make_train_step":
        monkeypatch.setattr(step, "make_train_step", lambda *_: too_large)
    else:
        monkeypatch.setattr(tasks, "make_eval_step", lambda *_: too_large)
    with pytest.raises(UserError, match=f"out of memory: {said}"):
        train(run, tmp_path / "run")


def _events(folder: Path) -> Iterator[Any]:
    """The events in TensorBoard's files: length, its checksum, the event, its checksum."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
