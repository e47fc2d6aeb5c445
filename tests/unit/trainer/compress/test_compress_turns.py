"""Cutting and distilling by turns: ladders of rungs, and short distillations that rank candidates."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from serving.command import UserError
from tests.support.compressions import run_flow
from tests.support.small_models import SMALL, able_params, save_digits
from trainer import checkpoint, config, description
from trainer.checkpoint import Loaded
from trainer.compress import halving, ladder
from trainer.compress.given import Given


def test_a_ladder_cuts_and_distils_rung_by_rung_to_the_budget(teacher: Path, tmp_path: Path) -> None:
    """With `rungs=0` there are as many as a third at a time needs: two to three fifths."""
    more = ("--config.distil.rungs=0", "--config.halving.candidates=0", "--config.until=distil")
    result = run_flow(teacher, tmp_path, *more)
    (rung,) = json.loads((tmp_path / "report.json").read_text())["rungs"]
    whole = description.param_count(SMALL)
    assert result["params"]["actual"] <= 0.6 * whole
    assert (
        result["params"]["actual"] < rung["params"] <= 0.6**0.5 * whole * 1.02
    )  # what one cut gives is below 0.6
    first = checkpoint.load(teacher).meta["weights_hash"]
    for folder in (tmp_path / "ladder" / "1" / "distil", tmp_path / "distil"):
        assert checkpoint.load_card(folder).meta["teacher_hash"] == first  # the teacher stays the first one
    between = checkpoint.load(tmp_path / "ladder" / "1" / "distil").meta["weights_hash"]
    assert checkpoint.load_card(tmp_path).meta["teacher_hash"] == between  # what the last cut was made from
    assert {"teacher", "last rung", "distilled"} <= result["validation_top1"].keys()


def test_a_rung_has_a_limit_of_its_own_and_no_device() -> None:
    more = [("budget.latency_p50_ms", "2"), ("budget.profile", "edge.json")]
    asked = config.compression("configs/compress.py", more)
    found = dataclasses.replace(asked, budget=ladder._only(asked.budget, "macs", 1000)).budget
    assert (found.macs, found.latency_p50_ms, found.profile) == (1000, 0, "")


def test_a_ladder_whose_rungs_lost_too_much_says_so(tmp_path: Path) -> None:
    """Two steps at a high rate ruin the rung, so that the accuracy asked for is above what the last cut begins with."""
    save_digits(tmp_path / "teacher", params=able_params())
    more = (
        "--config.budget.params=0",
        "--config.budget.max_drop=0.1",
        "--config.distil.rungs=2",
        "--config.distil.base_lr=10",
        "--config.halving.candidates=0",
    )
    with pytest.raises(
        UserError, match=r"after 1 distilled rungs, .*min_top1=0\.\d+ is above .*; or climb with fewer"
    ):
        run_flow(tmp_path / "teacher", tmp_path / "small", *more)


def test_halving_ranks_by_the_first_teacher_also_behind_a_ladder(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    said = halving._said

    def heard(given: Given, loaded: Loaded) -> Any:
        asked.append(loaded.meta["weights_hash"])
        return said(given, loaded)

    monkeypatch.setattr(halving, "_said", heard)
    run_flow(teacher, tmp_path, "--config.distil.rungs=2", "--config.until=distil")
    assert asked[0] == checkpoint.load(teacher).meta["weights_hash"]


def test_rungs_that_are_finer_than_cuts_are_passed_over(teacher: Path, tmp_path: Path) -> None:
    more = (
        "--config.distil.rungs=8",
        "--config.budget.params=0.8",
        "--config.halving.candidates=0",
        "--config.until=distil",
    )
    result = run_flow(teacher, tmp_path, *more)
    rungs = json.loads((tmp_path / "report.json").read_text())["rungs"]
    assert 0 < len(rungs) < 7
    assert result["params"]["actual"] <= 0.8 * description.param_count(SMALL)


@pytest.mark.slow
def test_of_three_candidates_the_better_two_are_distilled_for_twice_as_long(
    teacher: Path, tmp_path: Path
) -> None:
    run_flow(
        teacher,
        tmp_path,
        "--config.halving.candidates=3",
        "--config.halving.steps=2",
        "--config.round_width=2",
        "--config.until=distil",
    )
    rows = json.loads((tmp_path / "report.json").read_text())["halving"]
    assert [[one["steps"] for one in row["rounds"]] for row in rows] == [[0, 2, 4], [0, 2, 4], [0, 2]]
    assert rows[0]["rounds"][-1]["divergence"] <= rows[1]["rounds"][-1]["divergence"]
