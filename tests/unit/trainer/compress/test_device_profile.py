"""A latency budget on another machine: a kit of models, timed there by the server's installation, and cut to here."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.command import UserError
from serving.runtime.select import open_runtime
from serving.timing import __main__ as profile
from serving.timing import turns as timing
from serving.timing.turns import Timing
from tests.support.small_models import SMALL, save_digits
from trainer import checkpoint, config, description
from trainer.compress import goals, kit, profiles
from trainer.compress.__main__ import main as compress
from trainer.compress.allocate import Rounding
from trainer.config import Compression
from trainer.description import ViT, macs

RECIPE = "configs/compress.py:digits"
SLOW_MS = 5.0  # of the invented device, a call
ROUNDING = Rounding(8, 4, 8)
_ROUNDED = [f"--config.round_{name}={size}" for name, size in (("mlp", 8), ("head_dim", 4), ("width", 8))]


def _asked(*changes: str) -> Compression:
    given = [f"--config={RECIPE}", *_ROUNDED, "--config.budget.latency_p50_ms=6", *changes]
    recipe, overrides, _ = config.split_config_args(given)
    return config.compression(str(recipe), overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of SMALL."""
    folder = tmp_path_factory.mktemp("kit") / "kit"
    teacher = tmp_path_factory.mktemp("teacher")
    save_digits(teacher)
    arguments = [f"--checkpoint={teacher}", f"--config={RECIPE}", *_ROUNDED, "--config.budget.threads=1"]
    said = kit.main([*arguments, f"--out={folder}"])
    assert said["models"] == len(list(folder.glob("*.onnx")))
    return folder


def _models(folder: Path) -> list[ViT]:
    rows = json.loads((folder / "kit.json").read_text())["models"]
    found = [description.from_json(json.loads(row["description"])) for row in rows]
    return [description.require_vit(model, "a test") for model in found]


def _invent(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[int]:
    """A device of which a call takes 5 ms and a million MACs 100; returns how many models each of its turns timed."""
    rows, turns = iter(_models(folder)), list[int]()

    def timed(runtimes: list[Any], inputs: list[Any], seconds: float) -> list[Timing]:
        turns.append(len(runtimes))
        times = [SLOW_MS + macs(next(rows)) / 1e4 for _ in runtimes]
        return [Timing(time, 2 * time, 0.01, time) for time in times]

    monkeypatch.setattr(timing, "time_in_turns", timed)
    return turns


def test_a_kit_holds_every_size_in_files_that_share_one_set_of_weights(folder: Path) -> None:
    wanted = set(goals.timed_models(SMALL, ROUNDING))
    assert set(_models(folder)) == wanted
    # The largest kernel, of queries, keys and values together, once and not in every file.
    assert (folder / "weights.bin").stat().st_size == 4 * 16 * 3 * 16
    row = json.loads((folder / "kit.json").read_text())["models"][-1]
    runtime = open_runtime(folder / row["file"], "onnxruntime", 1)
    images = np.random.default_rng(0).normal(size=(2, *row["image"])).astype(np.float32)
    (said,) = runtime.run({"images": images}).values()
    runtime.close()
    assert np.isfinite(said).all()
    assert np.ptp(said[0] - said[1]) > 0


def test_a_device_times_the_kit_for_real(folder: Path, tmp_path: Path) -> None:
    said = profile.main([f"--kit={folder}", f"--out={tmp_path / 'device.json'}", "--seconds=0"])
    assert said["models"] == len(_models(folder))
    machine, timings = profiles.read(tmp_path / "device.json", goals.Setting(1, 1, "fp32"))
    assert machine == profile.this_machine()
    assert all(timing.p50_ms > 0 for timing in timings.values())


def test_timing_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, out = _invent(monkeypatch, folder), tmp_path / "device.json"
    whole = timing.time_in_turns

    def stopped(runtimes: list[Any], inputs: list[Any], seconds: float) -> list[Timing]:
        if len(turns) == 1:
            raise KeyboardInterrupt
        return whole(runtimes, inputs, seconds)

    monkeypatch.setattr(timing, "time_in_turns", stopped)
    with pytest.raises(KeyboardInterrupt):
        profile.main([f"--kit={folder}", f"--out={out}"])
    monkeypatch.setattr(timing, "time_in_turns", whole)
    profile.main([f"--kit={folder}", f"--out={out}"])
    assert sum(turns) == len(_models(folder))
    monkeypatch.setattr(profile, "this_machine", lambda: {"cpu": "other", "features": "", "runtime": ""})
    with pytest.raises(UserError, match="profile of another kit, device or runtime"):
        profile.main([f"--kit={folder}", f"--out={out}"])


def test_a_teacher_is_cut_to_the_recorded_devices_latency(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _invent(monkeypatch, folder)
    device = tmp_path / "device.json"
    profile.main([f"--kit={folder}", f"--out={device}"])
    save_digits(tmp_path / "teacher")
    asked_ms = SLOW_MS + 0.6 * macs(SMALL) / 1e4
    overrides = [
        *_ROUNDED,
        f"--config.budget.latency_p50_ms={asked_ms}",
        f"--config.budget.profile={device}",
        "--config.budget.threads=1",
        "--config.calibration.examples=256",
        "--config.until=cut",
    ]
    workdir = tmp_path / "small"
    result = compress(
        [f"--checkpoint={tmp_path / 'teacher'}", f"--config={RECIPE}", f"--workdir={workdir}", *overrides]
    )
    model = checkpoint.load_card(workdir).description
    takes_ms = SLOW_MS + macs(model) / 1e4
    assert 0.9 * asked_ms <= takes_ms <= asked_ms
    assert isinstance(result["budget"], dict)
    assert str(device) in str(result["budget"]["where"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["--config.budget.threads=2"],
            "is of batch=1 threads=1 precision=fp32, asked are batch=1 threads=2",
        ),
        (["--config.budget.latency_p50_ms=4"], "is below the .* ms that the least cut needs"),
        (["--config.round_mlp=1"], "lacks sizes that this compression asks for"),
        (["--config.budget.profile=absent.json"], "budget.profile=absent.json is no file"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], said: str
) -> None:
    _invent(monkeypatch, folder)
    device = tmp_path / "device.json"
    profile.main([f"--kit={folder}", f"--out={device}"])
    asked = _asked(f"--config.budget.profile={device}", "--config.budget.threads=1", *changes)
    rounding = Rounding(asked.round_mlp, asked.round_head_dim, asked.round_width)
    with pytest.raises(UserError, match=said):
        goals.of(asked.budget, SMALL, rounding)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gelu": "tanh"}, "is of a teacher that has gelu erf, this one tanh"),
        ({"blocks": (*SMALL.blocks, *SMALL.blocks)}, "has num_layers 2, this one 4"),
        ({"width": 24}, "has hidden_size 16, this one 24"),
    ],
)
def test_a_profile_of_another_teacher_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    _invent(monkeypatch, folder)
    device = tmp_path / "device.json"
    profile.main([f"--kit={folder}", f"--out={device}"])
    asked = _asked(f"--config.budget.profile={device}", "--config.budget.threads=1")
    with pytest.raises(UserError, match=said):
        goals.of(asked.budget, dataclasses.replace(SMALL, **change), ROUNDING)


def test_a_kit_without_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "kit")
    (copy / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"lacks weights\.bin"):
        profile.main([f"--kit={copy}", f"--out={tmp_path / 'device.json'}"])


def test_a_profile_without_a_latency_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget.profile=a.json is for budget.latency_p50_ms"):
        config.compression(RECIPE, [("budget.profile", "a.json")])


@pytest.mark.parametrize(
    "content", [None, "{", '{"format": "other"}', '{"format": "vitforge-latency-kit-1", "models": []}']
)
def test_what_is_no_kit_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "kit.json").write_text(content)
    with pytest.raises(UserError, match="kit"):
        profile.main([f"--kit={tmp_path}", f"--out={tmp_path / 'device.json'}"])


def test_a_kit_is_not_written_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        kit.write(SMALL, _asked(), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
