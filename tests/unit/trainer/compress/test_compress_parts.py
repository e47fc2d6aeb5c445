"""Stages, rungs, budgets of accuracy and limits, without a model."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from serving.command import ExitCode, UserError
from tests.support.small_models import SMALL
from trainer import config
from trainer.compress import ladder, least_accuracy
from trainer.compress.allocate import Rounding
from trainer.compress.plan import Plan, identity
from trainer.compress.search import Candidate, Infeasible
from trainer.compress.shipping import Limit, require
from trainer.compress.stages import Stages
from trainer.config import Compression
from trainer.description import macs

CONFIG = config.compression("configs/compress.py", [])
HASHES = {"teacher": "a" * 64}


def _begun(workdir: Path, asked: Compression = CONFIG) -> Stages:
    stages = Stages(workdir, asked, HASHES)
    stages.begin()
    return stages


def test_a_finished_stage_is_not_done_again_and_an_unfinished_one_is(tmp_path: Path) -> None:
    done: list[str] = []

    def work() -> dict[str, Any]:
        done.append("once")
        if len(done) == 1:
            raise RuntimeError("half way")
        return {"value": 0.1}

    with pytest.raises(RuntimeError):
        _begun(tmp_path).run("cut", work)
    results = [_begun(tmp_path).run("cut", work) for _ in range(2)]
    assert results == [{"value": 0.1}] * 2
    assert len(done) == 2


def test_how_far_to_go_may_change_and_nothing_that_is_made(tmp_path: Path) -> None:
    _begun(tmp_path)
    _begun(tmp_path, dataclasses.replace(CONFIG, until="cut"))
    with pytest.raises(UserError, match=r"ridge is 0\.001 there, 0\.5 now"):
        Stages(tmp_path, dataclasses.replace(CONFIG, ridge=0.5), HASHES)
    with pytest.raises(UserError, match="another teacher: sha256 aaaaaaaaaaaa there, bbbbbbbbbbbb now"):
        Stages(tmp_path, CONFIG, {"teacher": "b" * 64})


def test_how_to_export_may_change_until_it_is_exported(tmp_path: Path) -> None:
    """Else hours of distillation were lost to one number that was asked too high."""

    def asking(agreement: float) -> Compression:
        return dataclasses.replace(CONFIG, export=dataclasses.replace(CONFIG.export, min_agreement=agreement))

    _begun(tmp_path, asking(0.99)).run("distil", dict)
    _begun(tmp_path, asking(0.9)).run("export", dict)
    _begun(tmp_path, asking(0.9))
    with pytest.raises(UserError, match=r"export\.min_agreement is 0\.9 there, 0\.99 now"):
        Stages(tmp_path, asking(0.99), HASHES)


def test_how_to_distil_may_change_until_something_was_distilled_and_how_a_step_is_computed_always(
    tmp_path: Path,
) -> None:
    """A step that does not fit into memory, or a rate that was too high, costs no second search."""

    def asking(**distil: Any) -> Compression:
        return dataclasses.replace(CONFIG, distil=dataclasses.replace(CONFIG.distil, **distil))

    _begun(tmp_path).run("cut", dict)
    with pytest.raises(UserError, match=r"distil\.rungs is 1 there, 0 now; .*distil\.\* but distil\.rungs"):
        Stages(tmp_path, asking(rungs=0), HASHES)
    _begun(tmp_path, asking(base_lr=0.25)).run("distil", dict)
    _begun(tmp_path, asking(base_lr=0.25, accum_steps=2))
    with pytest.raises(UserError, match=r"distil\.base_lr is 0\.25 there, 0\.5 now"):
        Stages(tmp_path, asking(base_lr=0.5, accum_steps=2), HASHES)


@pytest.mark.parametrize("again", [False, True], ids=["begun now", "stopped before and run again"])
@pytest.mark.parametrize(
    ("code", "kept"), [(ExitCode.BAD_INPUT, False), (ExitCode.PREEMPTED, True), (ExitCode.INTERRUPTED, True)]
)
def test_only_a_refusal_before_the_first_stage_is_done_is_forgotten(
    code: ExitCode, kept: bool, again: bool, tmp_path: Path
) -> None:
    for _ in range(1 + again):
        stages = _begun(tmp_path)
    with pytest.raises(UserError), stages.forgotten_when_refused():
        raise UserError("too few calibration images", code)
    assert (tmp_path / "compression.json").exists() == kept


def test_a_refusal_after_a_stage_keeps_what_is_done(tmp_path: Path) -> None:
    stages = _begun(tmp_path)
    stages.run("search", dict)
    with pytest.raises(UserError), stages.forgotten_when_refused():
        raise UserError("no room")
    assert (tmp_path / "compression.json").exists()


@pytest.mark.parametrize(("kept", "rungs"), [(1.0, 1), (0.9, 1), (2 / 3, 1), (0.6, 2), (4 / 9, 2), (0.25, 4)])
def test_no_rung_takes_more_than_a_third(kept: float, rungs: int) -> None:
    assert ladder.count(0, kept) == rungs
    steps = [1.0, *ladder.fractions(kept, rungs)]
    assert steps[-1] == pytest.approx(kept)
    # float rounding of a third that is met exactly
    assert all(after >= before * (2 / 3) * (1 - 1e-9) for before, after in itertools.pairwise(steps))


def test_asked_rungs_are_given() -> None:
    assert ladder.count(3, 0.9) == 3


def _found(limit: int) -> list[Candidate]:
    return [Candidate("made", identity(SMALL), limit, 0.0)]


def _bisect(threshold: int, least: float = 0.9) -> tuple[int, list[Any]]:
    """The MACs that are found when just budgets from `threshold` on keep the accuracy."""
    budgets: list[int] = []

    def search(limit: int) -> list[Candidate]:
        budgets.append(limit)
        return _found(limit)

    def accuracy(plan: Plan) -> float:
        return 0.95 if budgets[-1] >= threshold else 0.5

    kept, met = least_accuracy.smallest(SMALL, Rounding(8, 4, 16), search, accuracy, least, 0.96)
    return kept[0].cost, met["tried"]


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_the_fewest_macs_that_keep_the_accuracy_are_found(share: float) -> None:
    threshold = int(share * macs(SMALL))
    found, tried = _bisect(threshold)
    assert threshold <= found <= 1.04 * threshold  # the bisection ends at a ratio of 1.03
    assert len(tried) <= 8


def test_an_accuracy_of_a_teacher_that_cannot_be_cut_is_refused_in_its_own_words() -> None:
    def nothing(budget: int) -> list[Candidate]:
        raise Infeasible(f"nothing within budget {budget}", SMALL)

    with pytest.raises(
        UserError, match=r"the least that does has [\d,]+ MACs of [\d,]+; give a budget of so many MACs"
    ):
        least_accuracy.smallest(SMALL, Rounding(8, 4, 16), nothing, lambda _: 1.0, 0.9, 0.96)


def test_an_accuracy_that_no_cut_keeps_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError,
        match=r"keeps a validation top-1 of 0\.99 .* the nearest has 0\.5 at .*budget\.max_drop=0\.46",
    ):
        _bisect(10**9, least=0.99)


def test_what_is_within_every_limit_passes_and_each_miss_is_named() -> None:
    fine = [Limit("params", "params", 10, 10), Limit("min_top1", "top-1", 0.9, 0.9, at_least=True)]
    require(fine, "models/student/1")
    missed = [Limit("latency_p50_ms", "ms", 5, 5.2), Limit("min_top1", "top-1", 0.9, 0.89, at_least=True)]
    with pytest.raises(
        UserError, match=r"latency_p50_ms=5 was asked, 5\.2 ms measured; budget\.min_top1=0\.9"
    ):
        require([*fine, *missed], "models/student/1")


@pytest.mark.parametrize(
    ("actual", "at_least", "asked"),
    [(1.46397504, False, "1.46398"), (0.51738001, False, "0.517381"), (0.8912345, True, "0.891234")],
)
def test_the_nearest_possible_is_rounded_to_where_it_is_possible(
    actual: float, at_least: bool, asked: str
) -> None:
    with pytest.raises(UserError, match=rf"the nearest possible is --config\.budget\.it={asked},"):
        require([Limit("it", "ms", 2.0 if at_least else 0.1, actual, at_least)], "models/student/1")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("until", "served", "until='served' must be one of cut, distil, export"),
        ("distil.batch", "0", "distil.batch=0 must be at least 1"),
        ("distil.total_steps", "-1", "distil.total_steps=-1 must be 0 or above"),
        ("distil.warmup_steps", "400", "distil.warmup_steps=400 is not below total_steps=400"),
        ("halving.steps", "0", "halving.steps=0 must be at least 1"),
        ("export.name", "a/b", "export.name='a/b' must be the name of a folder"),
        ("export.precision", "fp8", "export.precision='fp8' must be empty or one of"),
        ("budget.max_drop", "1.5", r"budget.max_drop=1.5 must be a fraction in \(0, 1\)"),
    ],
)
def test_a_bad_key_of_the_later_stages_is_refused_at_once(key: str, value: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.compression("configs/compress.py", [(key, value)])


def test_a_ladder_needs_a_budget() -> None:
    with pytest.raises(UserError, match=r"distil.rungs=0 is for a budget; with shape"):
        config.compression("configs/compress.py", [("shape.num_layers", "1"), ("distil.rungs", "0")])


def test_a_refusal_removes_nothing_that_is_not_the_compressions(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    stages = _begun(tmp_path)
    with pytest.raises(UserError), stages.forgotten_when_refused():
        raise UserError("too few images")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("turns", [("distil.rungs", "2"), ("halving.candidates", "3")])
def test_blocks_are_matched_with_those_of_one_cut(turns: tuple[str, str]) -> None:
    given = [("distil.feature_weight", "1"), turns]
    with pytest.raises(UserError, match=r"distil.feature_weight=1 matches blocks of one cut"):
        config.compression("configs/compress.py", given)


@pytest.mark.parametrize(
    ("kept", "said"), [((0.5,), ["each rung keeps 50% .* with 4 rungs"]), ((0.7, 0.49), []), ((), [])]
)
def test_rungs_that_take_more_than_a_third_are_remarked_on(kept: tuple[float, ...], said: list[str]) -> None:
    """Two rungs of a half come to a quarter, for which the rule of a third takes four."""
    remarks = ladder.remarks([{"kept": one, "rung": rung} for rung, one in enumerate(kept, 1)])
    assert len(remarks) == len(said)
    assert all(re.search(pattern, remark) for pattern, remark in zip(said, remarks))
