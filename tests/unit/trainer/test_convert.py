"""`python -m trainer.convert`: one format into another, and the report of it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support import published_files as files
from tests.support.small_models import save_digits
from trainer.convert import main as command_main

Convert = Callable[[list[str]], dict[str, object]]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Convert:
    """The command, where the small models have names."""
    files.register(monkeypatch.setitem)
    return command_main


def test_an_npz_becomes_safetensors_of_timm(tmp_path: Path, convert: Convert) -> None:
    np.savez(tmp_path / "in.npz", **files.vit_npz())  # type: ignore[arg-type]
    out = tmp_path / "out.safetensors"
    result = convert([f"--weights={tmp_path / 'in.npz'}", "--model=Toy", f"--output={out}"])
    assert load_file(out).keys() == files.timm().keys()
    assert (result["family"], result["bytes"]) == ("vit", out.stat().st_size)
    assert result["computed_otherwise"] == ("timm has gelu erf, this model tanh",)
    assert json.dumps(result)


def test_the_layout_of_an_npz_survives(tmp_path: Path, convert: Convert) -> None:
    file = files.below("params/", files.stacked(files.vit_npz(linen=True)))
    np.savez(tmp_path / "in.npz", **file)  # type: ignore[arg-type]
    convert([f"--weights={tmp_path / 'in.npz'}", "--model=Toy", f"--output={tmp_path / 'out.npz'}"])
    with np.load(tmp_path / "out.npz") as went:
        assert set(went) == set(file)


def test_an_npz_that_is_not_changed_comes_out_as_it_went_in(tmp_path: Path, convert: Convert) -> None:
    """Whatever its precision, and with what lies beside the model."""
    file: dict[str, np.ndarray] = {
        name: leaf.astype(np.float64) / 3 for name, leaf in files.vit_npz().items()
    }
    width = file["head/kernel"].shape[0]
    beside = {"pre_logits/kernel": np.ones((width, width)), "pre_logits/bias": np.ones(width)}
    np.savez(tmp_path / "in.npz", **file, **beside)  # type: ignore[arg-type]
    convert([f"--weights={tmp_path / 'in.npz'}", "--model=Toy", f"--output={tmp_path / 'out.npz'}"])
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "in.npz").read_bytes()
    removed = tmp_path / "headless.npz"
    convert([f"--weights={tmp_path / 'in.npz'}", "--model=Toy", "--head=remove", f"--output={removed}"])
    assert "head/kernel" not in np.load(removed)


def test_size_and_head_can_be_changed_on_the_way(tmp_path: Path, convert: Convert) -> None:
    np.savez(tmp_path / "in.npz", **files.vit_npz())  # type: ignore[arg-type]
    flags = ["--model=Toy", "--image_size=24,32", "--head=reinit", "--num_classes=3"]
    result = convert([f"--weights={tmp_path / 'in.npz'}", *flags, f"--output={tmp_path / 'out.npz'}"])
    assert "pos (1, 17, 16) → (1, 49, 16)" in str(result["report"])
    with np.load(tmp_path / "out.npz") as went:
        assert went["head/kernel"].shape == (files.WIDTH, 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output=a.npz"], "one of --weights and --checkpoint are needed"),
        (["--weights=a", "--checkpoint=b", "--output=a.npz"], "one of --weights and --checkpoint are needed"),
        (["--weights=a"], "--output and one of"),
        (["--weights=a", "--output=a.bin"], "must end in .npz or .safetensors"),
        (["--weights=a", "--output=a.npz", "--image_size=1,2,3"], "must be H,W in pixels"),
        (["--weights=nowhere.npz", "--output=a.npz"], "nowhere.npz does not exist"),
    ],
)
def test_a_bad_command_line_ends_with_one_line_and_code_2(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.convert", *flags],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_becomes_an_npz(tmp_path: Path, convert: Convert) -> None:
    save_digits(tmp_path / "run")
    result = convert([f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'out.npz'}"])
    assert result["computed_otherwise"] == ("the original code has gelu tanh, this model erf",)
    with np.load(tmp_path / "out.npz") as went:
        assert "cls" not in went


def test_an_output_that_exists_is_refused_before_anything_is_read(tmp_path: Path, convert: Convert) -> None:
    (tmp_path / "out.npz").write_text("precious")
    with pytest.raises(Exception, match="exists already"):
        convert(["--weights=nowhere.npz", "--model=Toy", f"--output={tmp_path / 'out.npz'}"])
