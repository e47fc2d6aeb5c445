"""Everything that can be asked of the whole command: budgets of each kind, stated sizes, hybrids, precisions."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import read_bundle
from serving.command import UserError
from serving.timing.turns import Timing
from tests.support.compressions import cut_arguments, run_flow
from tests.support.small_families import HYBRID
from tests.support.small_models import DIGITS_SPEC, SMALL, able_params, save_digits
from trainer import checkpoint, description
from trainer.compress import halving, latency, shipping
from trainer.compress.__main__ import main
from trainer.description import Stem, uniform
from trainer.export import job
from trainer.export.candidate import Candidate
from trainer.export.fastest import Choice
from trainer.export.gate import Gate


def test_sizes_fall_with_the_budget(teacher: Path, tmp_path: Path) -> None:
    found = [
        run_flow(
            teacher,
            tmp_path / str(kept),
            f"--config.budget.macs={kept}",
            "--config.budget.params=0",
            "--config.until=cut",
            "--config.halving.candidates=0",
            "--config.round_mlp=8",
        )
        for kept in (0.3, 0.55, 0.9)
    ]
    macs = [result["macs"]["actual"] for result in found]
    params = [result["params"]["actual"] for result in found]
    assert macs == sorted(set(macs))
    assert params == sorted(params)


def test_merging_tokens_is_tried_where_the_search_may(tmp_path: Path) -> None:
    model = dataclasses.replace(SMALL, patch_size=2, blocks=uniform(4, 2, 8, 32))
    save_digits(tmp_path / "teacher", model)
    asked = ("--config.merge=always", "--config.budget.params=0", "--config.budget.macs=0.5")
    main(cut_arguments(tmp_path / "teacher", tmp_path / "small", *asked))
    rows = json.loads((tmp_path / "small" / "report.json").read_text())["candidates"]
    merging = [row for row in rows if "patches merged" in row["made_by"]]
    assert merging
    assert all(row["macs"] <= 0.5 * description.macs(model) for row in merging)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--config.budget.params=0", "--config.budget.min_top1=0.99"),
            r"budget\.min_top1=0\.99 is above the teacher's own 0\.\d+ on the validation images; ask at most that",
        ),
        (
            ("--config.budget.params=0", "--config.budget.mib=0.0001"),
            r"is below the [\d.]+ MiB that the least cut needs; give at least that",
        ),
    ],
)
def test_an_impossible_budget_is_refused_with_the_nearest_possible(
    more: tuple[str, ...], said: str, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_flow(teacher, tmp_path / "small", *more)
    assert not (tmp_path / "small").exists()


def _by_size(
    files: Sequence[bytes], inputs: Sequence[object], threads: int, seconds: float = 0.0
) -> list[Timing]:
    """A machine that takes a millisecond a call and another for every 10 kB of the file."""
    times = [1 + len(content) / 1e4 for content in files]
    return [Timing(taken, 2 * taken, 0.01, taken) for taken in times]


@pytest.mark.parametrize("quantile", ["p50", "p99"])
def test_a_latency_is_met_by_what_is_shipped_as_it_is_timed_in_the_end(
    quantile: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "time_models", _by_size)
    (whole,) = _by_size([latency.graph_bytes(SMALL, "fp32")], [], 1)
    tail = getattr(whole, f"{quantile}_ms") / whole.p50_ms
    asked = tail * (1 + 0.7 * (whole.p50_ms - 1))
    result = run_flow(
        teacher,
        tmp_path / "small",
        "--config.budget.params=0",
        f"--config.budget.latency_{quantile}_ms={asked}",
        "--config.round_mlp=4",
    )
    found = result["shipped"]["latency"][f"{quantile}_ms"]
    assert 0.9 * asked <= found <= asked
    (bundle,) = (tmp_path / "small" / "models").glob("*/*/model.onnx")
    assert found == pytest.approx(tail * (1 + bundle.stat().st_size / 1e4))
    report = (tmp_path / "small" / "report.md").read_text()
    assert "How the budget was met" in report
    assert f"| latency_{quantile}_ms | {asked:g} |" in report
    assert "Searches for the budget, the best last" in report
    assert f"| params | macs | latency {quantile} ms, predicted | KL, nats |" in report
    rows = json.loads((tmp_path / "small" / "report.json").read_text())["candidates"]
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)  # cheapest in what was asked


def test_what_is_told_of_a_latency_is_that_of_who_won_the_race(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "time_models", _by_size)
    race = halving.race
    monkeypatch.setattr(halving, "race", lambda *given: race(*given)[::-1])  # the last is taken
    (whole,) = _by_size([latency.graph_bytes(SMALL, "fp32")], [], 1)
    more = ("--config.budget.params=0", f"--config.budget.latency_p50_ms={1 + 0.7 * (whole.p50_ms - 1)}")
    result = run_flow(teacher, tmp_path / "small", *more, "--config.round_mlp=4")
    rows = json.loads((tmp_path / "small" / "report.json").read_text())["halving"]
    assert len(rows) == 2
    assert result["budget"]["measured"] == pytest.approx(result["shipped"]["latency"]["p50_ms"], rel=1e-4)


@pytest.mark.parametrize("loss", ["hard", "token"])
def test_a_file_of_so_many_mib_is_trained_as_it_will_be_rounded_and_taught_in_every_way(
    loss: str, tmp_path: Path
) -> None:
    model = dataclasses.replace(SMALL, pooling="cls", distilled=loss == "token")
    save_digits(tmp_path / "teacher", model)
    most = 0.75 * len(latency.graph_bytes(model, "int8_weights")) / 2**20
    result = run_flow(
        tmp_path / "teacher",
        tmp_path / "small",
        "--config.budget.params=0",
        f"--config.budget.mib={most}",
        "--config.budget.precision=int8_weights",
        f"--config.distil.distill_loss={loss}",
        "--config.distil.qat_steps=2",
        "--config.distil.teacher_epochs=1",
        f"--config.distil.teacher_cache={tmp_path / 'answers'}",
        "--config.halving.candidates=0",
        "--config.export.min_agreement=0.5",  # random weights are unsure of every image
    )
    assert result["shipped"]["precision"] == "int8_weights"
    assert result["shipped"]["mib"] <= most
    assert list((tmp_path / "answers").iterdir())
    said = checkpoint.load_card(tmp_path / "small" / "distil").meta["config_text"]
    assert f'distill_loss = "{loss}"' in said


@pytest.mark.slow
def test_a_hybrid_is_cut_in_its_stem_too_and_shipped(tmp_path: Path) -> None:
    model = dataclasses.replace(HYBRID, image_size=(40, 40), channels=1, stem=Stem(32, (1, 1)), patch_size=1)
    spec = dataclasses.replace(DIGITS_SPEC, height=40, width=40)
    save_digits(tmp_path / "teacher", model, spec=spec)
    result = run_flow(
        tmp_path / "teacher",
        tmp_path / "small",
        "--config.budget.params=0",
        "--config.budget.macs=0.5",
        "--config.calibration.examples=128",
        "--config.calibration.batch=32",
        "--config.distil.total_steps=2",
        "--config.halving.candidates=0",
    )
    shipped = checkpoint.load_card(tmp_path / "small" / "distil").description
    assert shipped.stem.groups_by_unit != model.stem.groups_by_unit
    assert result["shipped"]["macs"] == description.macs(shipped) <= 0.5 * description.macs(model)
    assert (
        read_bundle(tmp_path / "small" / "models" / "student" / "1").manifest.provenance.stage == "distilled"
    )


def test_a_stem_in_which_nothing_can_be_cut_is_remarked_on(tmp_path: Path) -> None:
    model = dataclasses.replace(HYBRID, image_size=(16, 16), channels=1, stem=Stem(32, ()), patch_size=2)
    save_digits(tmp_path / "teacher", model, spec=dataclasses.replace(DIGITS_SPEC, height=16, width=16))
    more = (
        "--config.search=uniform",
        "--config.budget.params=0.9",
        "--config.until=cut",
        "--config.halving.candidates=0",
    )
    result = run_flow(tmp_path / "teacher", tmp_path / "small", *more)
    assert any("this stem has no bottleneck units" in remark for remark in result["remarks"])
    assert checkpoint.load_card(tmp_path / "small").description.stem == model.stem


def test_a_stated_shape_is_shipped_and_the_report_says_so(teacher: Path, tmp_path: Path) -> None:
    result = run_flow(
        teacher,
        tmp_path / "small",
        "--config.budget.params=0",
        "--config.shape.num_layers=1",
        "--config.shape.mlp_dim=16",
        "--config.distil.total_steps=0",
        "--config.halving.candidates=0",
    )
    report = (tmp_path / "small" / "report.md").read_text()
    assert f"Shipped as {result['shipped']['precision']}, in the sizes that were asked for." in report
    assert "| mlp_dim | 32 | 16 | 16 |" in report
    assert "one layer alone removed" in report
    assert "| 1 | mlp | " in report  # what each layer bears, though nothing was searched
    assert (tmp_path / "small" / "sensitivity.png").is_file()
    assert "found under another limit" not in report


def test_a_precision_with_too_little_accuracy_gives_way_to_the_next_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are invented: the fewer bits, the faster; and what eight bits alone answer: they keep nothing."""

    def fewest_bits_first(candidates: Sequence[Candidate], *_: object) -> Choice:
        order = ("int8", "int8_weights", "fp32")
        chosen = min(candidates, key=lambda one: order.index(one.precision))
        return Choice(chosen, [Timing(1.0, 1.0, 0.0, 1.0)] * len(candidates))

    monkeypatch.setattr(job, "fastest", fewest_bits_first)
    asked_threads: list[int] = []
    export = job.export

    def heard(subject: Any, request: job.Request) -> dict[str, Any]:
        asked_threads.append(request.threads)
        return export(subject, request)

    monkeypatch.setattr(job, "export", heard)
    why_refused = Gate.why_refused

    def worse_when_rounded(gate: Gate, precision: str, *made: Any) -> str:
        rounded = dataclasses.replace(gate, top1=lambda _: 0.0)
        return why_refused(rounded if precision == "int8" else gate, precision, *made)

    monkeypatch.setattr(Gate, "why_refused", worse_when_rounded)
    asked = ("--config.budget.params=0", "--config.budget.max_drop=0.1", "--config.export.min_agreement=0.9")
    rest = ("--config.search=uniform", "--config.distil.total_steps=0", "--config.halving.candidates=0")
    save_digits(tmp_path / "teacher", params=able_params())
    shipped = run_flow(tmp_path / "teacher", tmp_path / "small", *asked, *rest, "--config.budget.threads=1")[
        "shipped"
    ]
    assert shipped["precision"] == "int8_weights"
    assert asked_threads == [1]  # the fastest on those, as its latency is told
    assert re.search(
        r"int8 refused \(int8 has a validation top-1 of 0.00%, and 6\d\.\d\d% must remain\)", shipped["why"]
    )


def test_a_precision_that_was_asked_for_is_shipped_and_judged_though_it_has_too_little_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_digits(tmp_path / "teacher", params=able_params())
    small = tmp_path / "small"
    monkeypatch.setattr(shipping, "_top1", lambda *_: 0.3)
    asked = (
        "--config.budget.params=0",
        "--config.budget.max_drop=0.1",
        "--config.export.precision=int8_weights",
    )
    rest = ("--config.search=uniform", "--config.distil.total_steps=0", "--config.halving.candidates=0")
    with pytest.raises(UserError, match=r"max_drop=0\.1 was asked, .* the best that was found lies in"):
        run_flow(tmp_path / "teacher", small, *asked, *rest, "--config.export.min_agreement=0.5")
    report = (small / "report.md").read_text()
    assert "NOT within the budget: max_drop" in report
    assert re.search(
        r"was chosen: of the cuts that keep a validation top-1 of 0\.\d+ before any training", report
    )
    assert "further from the teacher" not in report  # which decides nothing here
    assert (small / "models" / "student" / "1").is_dir()


@pytest.mark.parametrize(("asked", "score"), [("max_drop=0.1", "taylor"), ("min_top1=0.6", "act")])
def test_the_fewest_macs_that_keep_an_accuracy_are_found_also_where_layers_are_cut_alike(
    asked: str, score: str, tmp_path: Path
) -> None:
    save_digits(tmp_path / "teacher", params=able_params())
    result = main(
        cut_arguments(
            tmp_path / "teacher",
            tmp_path / "small",
            "--config.budget.params=0",
            f"--config.budget.{asked}",
            "--config.search=uniform",
            f"--config.score={score}",
        )
    )
    kept = result["validation_top1"]
    assert kept["cut and repaired"] >= (0.6 if "min_top1" in asked else kept["teacher"] - 0.1)
    assert result["macs"]["actual"] < result["macs"]["teacher"]
    assert "The fewest MACs that keep the accuracy" in (tmp_path / "small" / "report.md").read_text()


def test_blocks_are_matched_through_the_rotation_that_made_the_stream_narrower(
    teacher: Path, tmp_path: Path
) -> None:
    run_flow(
        teacher,
        tmp_path,
        "--config.budget.params=0",
        "--config.shape.hidden_size=12",
        "--config.distil.feature_weight=1",
        "--config.distil.feature_loss=mse",
        "--config.halving.candidates=0",
        "--config.until=distil",
    )
    assert (tmp_path / "projection.npz").is_file()
    said = checkpoint.load_card(tmp_path / "distil").meta["config_text"]
    assert "feature_weight = 1.0" in said


def test_tokens_are_merged_in_what_is_shipped(tmp_path: Path) -> None:
    deep = dataclasses.replace(SMALL, blocks=uniform(4, 2, 8, 32))
    save_digits(tmp_path / "teacher", deep)
    small = tmp_path / "small"
    result = run_flow(
        tmp_path / "teacher",
        small,
        "--config.budget.params=0",
        "--config.shape.merge=1",
        "--config.distil.total_steps=0",
        "--config.halving.candidates=0",
    )
    shipped = checkpoint.load_card(small).description
    assert [block.merge for block in shipped.blocks] == [0, 0, 1, 1]
    assert result["shipped"]["macs"] == description.macs(shipped) < description.macs(deep)
    assert "pairs of tokens merged" in (small / "report.md").read_text()
