"""The arithmetic of the benchmarks, and the tables that say it."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from serving.command import UserError
from tools import machine, serving_load
from tools.bench_compression import cuts, distilled, headline, latency, one_shot, record
from tools.bench_compression.cuts import Cut
from tools.bench_compression.latency import Met
from tools.bench_compression.score import Score, paired_drop
from tools.serving_load import Load

TEACHER, WHOLE = Score.counted(900, 1000), {"macs": 1000, "params": 400}


def _cut(method: str, correct: int, fraction: float = 0.5) -> Cut:
    return Cut(method, fraction, 490, 200, 12.0, 10.0, Score.counted(correct, 1000), f"runs/{method}")


def test_a_score_shows_percent_with_its_interval() -> None:
    assert str(TEACHER) == "90.00 (87.98 to 91.71)"
    assert Score.counted(880, 1000).below(TEACHER) == 2.0


def test_a_paired_drop_counts_only_the_images_whose_answer_changed() -> None:
    before = [True] * 90 + [False] * 10
    after = [True] * 86 + [False] * 4 + [True] * 1 + [False] * 9  # four lost, one won
    drop = paired_drop(before, after)
    half = 1.959964 * math.sqrt(5 - 9 / 100)
    assert drop.points == pytest.approx(3)
    assert (drop.low, drop.high) == pytest.approx((3 - half, 3 + half))


def test_equal_answers_have_no_drop_at_all() -> None:
    assert dataclasses.astuple(paired_drop([True, False], [True, False])) == (0, 0, 0)


def test_one_shot_tells_what_is_left_and_how_far_below_the_teacher() -> None:
    text = one_shot.markdown(TEACHER, WHOLE, [_cut(cuts.OURS, 895), _cut("peer", 500)])
    assert "| 50% | ours, budget search | 49.0% | 50.0% | 89.50 (87.45 to 91.25) | 0.50 | 12 | 10 |" in text
    row = one_shot.row(_cut(cuts.OURS, 905), TEACHER, WHOLE)
    assert (row["macs_left"], row["points_below_teacher"]) == (0.49, -0.5)


def test_distilled_compares_ours_the_peers_best_and_random_weights() -> None:
    ours = _cut(cuts.OURS, 890)
    found = distilled.starts(ours, [_cut("l2", 300), _cut("taylor", 500), _cut("hessian", 400)])
    assert [start.flag for start in found] == [
        "--config.pretrained=runs/ours, budget search",
        "--config.pretrained=runs/taylor",
        "--config.shape_of=runs/ours, budget search",
    ]
    assert len({start.name for start in found}) == 3
    assert [start.method for start in distilled.starts(ours, [])] == [cuts.OURS, distilled.RANDOM]


def test_the_ratio_is_taken_round_by_round() -> None:
    rounds = [{"a": 120.0, "b": 10.0}, {"a": 60.0, "b": 5.0}, {"a": 150.0, "b": 10.0}]
    assert dataclasses.astuple(headline.ratio(rounds, "a", "b")) == (12.0, 12.0, 15.0)


def test_budgets_lie_strictly_between_the_ends() -> None:
    budgets = latency.spread_between(0.1, 6.4)
    assert budgets == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])


@pytest.mark.parametrize(("measured", "within"), [(0.9, True), (1.0, True), (0.89, False), (1.01, False)])
def test_a_budget_is_met_from_a_tenth_below_up_to_itself(measured: float, within: bool) -> None:
    met = Met(1.0, measured, 1.3, 0.01, 10, 1000, TEACHER)
    assert met.within == within
    shown = "yes" if within else r"**no**"
    setting = {"batch": 1, "threads": 1, "precision": "fp32"}
    assert f"| {measured:.3f} | {shown} | 1.3 |" in latency.markdown(TEACHER, 2.0, setting, [met])


def test_the_record_holds_machine_and_command(tmp_path: Path) -> None:
    said = record.write("one_shot", tmp_path / "results", tmp_path, "python -m x", {"rows": [1]}, "| a |")
    held = json.loads((tmp_path / "results" / "compression_one_shot.json").read_text())
    assert (held["command"], held["rows"]) == ("python -m x", [1])
    assert held["machine"]["cpu"] == machine.cpu_model()
    assert held["machine"]["versions"]["numpy"]
    assert "`python -m x`" in Path(said["report"]).read_text()


def test_a_peer_that_is_not_installed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`make peer` makes it"):
        cuts.require_peer(str(tmp_path / "python"))
    cuts.require_peer("")


def test_rounds_ask_all_models_in_turn_for_images_that_are_there() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    load = Load(concurrency=1, images_per_request=3, window_s=0.05, rounds=2)
    found = serving_load.rounds(
        lambda model, chosen: asked.append((model, tuple(chosen))), ["a", "b"], 2, load
    )
    assert [sorted(one) for one in found] == [["a", "b"]] * 2
    assert all(rate > 0 for one in found for rate in one.values())
    assert {index for _, chosen in asked for index in chosen} == {0, 1}
