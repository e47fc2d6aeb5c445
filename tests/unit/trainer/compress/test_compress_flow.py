"""The whole flow on a tiny model: cut, race, distil, export, check, report; stopped on the way and gone on with."""

import dataclasses
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import read_bundle
from serving.command import ExitCode, UserError
from tests.support.compressions import run_flow
from tests.support.small_models import SMALL
from trainer import checkpoint, description
from trainer.compress import search, shipping
from trainer.data.datasets import open_dataset
from trainer.metrics import MetricsWriter


def _never(*_: object) -> None:
    pytest.fail("what is done is done again")


@dataclasses.dataclass(frozen=True)
class Flow:
    """A flow that was stopped in its distillation and then run again; how it was stopped, and what it said in the end."""

    workdir: Path
    stopped: UserError
    result: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.workdir / "report.json").read_text())
        return found


@pytest.fixture(scope="module")
def flow(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    workdir, log = tmp_path_factory.mktemp("small"), MetricsWriter.queue

    def asked_to_stop(self: MetricsWriter, step: int, *what: Any) -> None:
        if (
            step == 2 and not what[-1]
        ):  # the short distillations end there, which is written: this is the long one
            signal.raise_signal(signal.SIGTERM)
        log(self, step, *what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsWriter, "queue", asked_to_stop)
        with pytest.raises(UserError) as stopped:
            run_flow(teacher, workdir)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compress.choosing.choose", "compress.halving._round", "compress.job.carry_out"):
            patch.setattr(f"trainer.{name}", _never)
        return Flow(workdir, stopped.value, run_flow(teacher, workdir))


def test_a_flow_that_was_stopped_in_its_distillation_goes_on_with_the_step_after(flow: Flow) -> None:
    assert flow.stopped.exit_code == ExitCode.PREEMPTED
    assert str(flow.stopped) == (
        f"preempted: saved step 2 in {flow.workdir / 'distil'}; run the same command to go on"
    )
    trained = json.loads((flow.workdir / "stages" / "distil.json").read_text())["result"]
    assert (trained["resumed_from"], trained["steps"]) == (2, 4)


def test_everything_lies_where_it_is_looked_for(flow: Flow) -> None:
    names = {path.name for path in flow.workdir.iterdir()}
    assert names >= {
        *("scores.npz", "search.json", "plan.json", "checkpoints", "distil", "models"),
        *("report.md", "report.json", "report.html", "pareto.png", "accuracy.png", "plan.png"),
    }
    assert checkpoint.load_card(flow.workdir).meta["stage"] == "pruned"
    assert checkpoint.load_card(flow.workdir / "distil").meta["stage"] == "distilled"


def test_what_is_shipped_is_the_distilled_model_within_the_budget(flow: Flow) -> None:
    bundle = read_bundle(flow.workdir / "models" / "student" / "1")
    distilled = checkpoint.load(flow.workdir / "distil")
    assert bundle.manifest.provenance.weights_hash == distilled.meta["weights_hash"]
    assert bundle.manifest.provenance.stage == "distilled"
    assert flow.result["checkpoint"] == str(flow.workdir / "distil")
    shipped = flow.result["shipped"]
    assert shipped["params"] == description.param_count(distilled.description)
    assert shipped["params"] <= 0.6 * description.param_count(SMALL)
    assert shipped["mib"] == bundle.model_file()[1].stat().st_size / 2**20
    assert shipped["top1"] == flow.result["validation_top1"]["shipped"]
    # No precision was asked for: the fastest that holds is shipped, and the report says why.
    why = f"{shipped['precision']} is shipped, the fastest within the accuracy gate"
    assert shipped["why"].startswith(why)
    assert why in (flow.workdir / "report.md").read_text()


def test_the_report_tells_every_stage_with_its_interval_and_every_rejected_candidate_with_its_reason(
    flow: Flow,
) -> None:
    facts = flow.facts
    stages = [row["stage"] for row in facts["accuracy"]]
    assert stages == ["teacher", "cut and repaired", "distilled", "shipped"]
    assert all(row["low"] <= row["top1"] <= row["high"] for row in facts["accuracy"])
    assert [row["stage"] for row in facts["tested"]] == ["teacher", "shipped"]
    tests = len(open_dataset("digits").test)
    assert (
        f"Accuracy, {tests} test images, by which nothing was chosen"
        in (flow.workdir / "report.md").read_text()
    )
    judged = json.loads((flow.workdir / "search.json").read_text())["plans"]
    assert len(facts["candidates"]) == len(judged)
    assert [bool(row["reason"]) for row in facts["candidates"]] == [
        not row["chosen"] for row in facts["candidates"]
    ]
    assert sum(row["chosen"] for row in facts["candidates"]) == 1
    assert facts["within_budget"] is True
    (limit,) = facts["limits"]
    assert (limit["name"], limit["actual"]) == ("params", flow.result["params"]["actual"])


def test_the_front_of_the_report_holds_what_nothing_cheaper_is_as_near_as(flow: Flow) -> None:
    rows = flow.facts["candidates"]
    for row in rows:
        better = [one for one in rows if one["macs"] <= row["macs"] and one["divergence"] < row["divergence"]]
        assert row["front"] == (not better)


def test_ranks_before_and_after_the_short_distillations_are_told(flow: Flow) -> None:
    rows = flow.facts["halving"]
    assert {row["before"] for row in rows} == {0, 1}
    assert [row["after"] for row in rows] == [0, 1]
    assert [[one["steps"] for one in row["rounds"]] for row in rows] == [[0, 2], [0, 2]]
    first, second = (row["rounds"][-1]["divergence"] for row in rows)
    assert first <= second
    chosen = next(row for row in flow.facts["candidates"] if row["chosen"])
    assert chosen["made_by"] == rows[0]["made_by"]
    # Among all that were judged: not all of them were distilled.
    place, judged = rows[0]["before"] + 1, len(flow.facts["candidates"])
    assert f"before them it was number {place} of {judged}." in flow.facts["why"]


def test_the_page_needs_nothing_beside_it_and_has_the_tables_of_the_markdown(flow: Flow) -> None:
    page = (flow.workdir / "report.html").read_text()
    sources = re.findall(r"""(?:src|srcset|href)=["']?([^"' >]+)""", page)
    assert len(sources) == 7  # three plots, for light and for dark, and the sensitivity
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    headings = re.findall(r"^## (.+)$", (flow.workdir / "report.md").read_text(), re.MULTILINE)
    assert len(headings) >= 6
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)


def test_a_bundle_above_the_budget_is_refused_with_the_nearest_possible_and_kept(
    teacher: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = shipping.measure
    monkeypatch.setattr(shipping, "measure", lambda *given: {**measure(*given), "params": 4000})
    with pytest.raises(UserError, match=r"budget\.params=2991 was asked, 4000 params measured") as refused:
        run_flow(teacher, flow.workdir)
    assert refused.value.exit_code == ExitCode.BAD_INPUT
    assert "--config.budget.params=4000" in str(refused.value)
    assert flow.facts["within_budget"] is False
    assert "NOT within the budget" in (flow.workdir / "report.md").read_text()
    assert read_bundle(flow.workdir / "models" / "student" / "1")
    monkeypatch.undo()
    assert run_flow(teacher, flow.workdir)["shipped"]["params"] < 2991
    assert flow.facts["within_budget"] is True


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal's job hears it: a script's shell starts its background jobs, these tests among them, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.PREEMPTED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_a_stopped_search_goes_on_and_finds_the_same(
    number: signal.Signals,
    code: ExitCode,
    teacher: Path,
    flow: Flow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, judged = search.Judge.__call__, list[int]()

    def stopping(self: search.Judge, plan: Any) -> float:
        if len(judged) == 2:
            signal.raise_signal(number)
        judged.append(1)
        return judge(self, plan)

    monkeypatch.setattr(search.Judge, "__call__", stopping)
    with pytest.raises(UserError) as stopped:
        run_flow(teacher, tmp_path, "--config.until=cut", "--config.halving.candidates=0")
    assert stopped.value.exit_code == code
    kept = json.loads((tmp_path / "search.json").read_text())["plans"]
    assert len(kept) == 2
    monkeypatch.undo()
    counted = list[int]()
    monkeypatch.setattr(
        search.Judge, "__call__", lambda self, plan: (counted.append(1), judge(self, plan))[1]
    )
    run_flow(teacher, tmp_path, "--config.until=cut", "--config.halving.candidates=0")
    whole = json.loads((flow.workdir / "search.json").read_text())["plans"]
    assert json.loads((tmp_path / "search.json").read_text())["plans"] == whole
    assert len(counted) == len(whole) - 2
