"""What is refused or fails is refused early, and mended in the same workdir without doing all anew."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serving.command import UserError
from tests.support.compressions import run_flow
from tests.support.small_models import able_params, save_digits
from trainer.compress import distilling


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--config.distil.distill_loss=token",), "needs a student with a distillation token"),
        (("--config.distil.feature_weight=1", "--config.distil.feature_blocks=7"), "teacher's are 0 to 1"),
        (("--config.distil.feature_weight=1", "--config.merge=always"), "set merge=never and shape.merge=0"),
    ],
)
def test_a_distillation_that_could_not_begin_is_refused_before_anything_is_cut(
    more: tuple[str, ...], said: str, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_flow(teacher, tmp_path / "small", "--config.halving.candidates=0", *more)
    assert not (tmp_path / "small").exists()


def test_a_search_that_was_refused_is_mended_without_measuring_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_digits(tmp_path / "teacher", params=able_params())
    budget = (
        "--config.budget.params=0",
        "--config.budget.max_drop=1e-9",
        "--config.until=cut",
        "--config.halving.candidates=0",
    )
    monkeypatch.setattr("trainer.compress.choosing._accuracy", lambda given, plan: 0.5)
    with pytest.raises(UserError, match=r"no cut keeps .*budget\.min_top1, or budget\.max_drop=0\.\d+"):
        run_flow(tmp_path / "teacher", tmp_path / "small", *budget)
    monkeypatch.setattr("trainer.compress.scores.score", None)  # not to be called
    monkeypatch.setattr("trainer.compress.search.measure_losses", None)
    run_flow(tmp_path / "teacher", tmp_path / "small", "--config.until=cut", "--config.halving.candidates=0")
    rows = json.loads((tmp_path / "small" / "report.json").read_text())["candidates"]
    assert not [row for row in rows if "above the budget" in row["reason"]]  # of the search before
    for made in ("stages", "checkpoints"):
        shutil.rmtree(tmp_path / "small" / made)
    (tmp_path / "small" / "compression.json").unlink()
    with pytest.raises(TypeError, match="not callable"):  # of other images all is measured anew
        run_flow(tmp_path / "teacher", tmp_path / "small", "--config.calibration.examples=260")


def test_a_step_that_does_not_fit_is_mended_by_the_key_that_a_compression_has(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = distilling.train

    def without_room(*given: Any) -> Any:
        raise UserError("out of memory: use --config.accum_steps=2, or --config.data_dir=there")

    monkeypatch.setattr(distilling, "train", without_room)
    more = ("--config.halving.candidates=0", "--config.until=distil")
    with pytest.raises(UserError, match=r"use --config\.distil\.accum_steps=2, or --config\.data_dir=there"):
        run_flow(teacher, tmp_path, *more)
    monkeypatch.setattr(distilling, "train", train)
    result = run_flow(teacher, tmp_path, *more, "--config.distil.accum_steps=2")
    assert "distilled" in result["validation_top1"]
