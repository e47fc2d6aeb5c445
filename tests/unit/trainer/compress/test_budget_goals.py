"""Budgets that are measured: table, correction, size and cache, with invented times. Nothing is timed here."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serving.command import UserError
from serving.timing import turns
from serving.timing.turns import Timing, summary
from tests.support.small_models import SMALL, UNEVEN
from trainer.compress import goals, latency, latency_table, profiles
from trainer.compress.allocate import Rounding
from trainer.compress.correction import Measured, Target, meet, through
from trainer.compress.latency import Setting, Timer, graph_bytes
from trainer.compress.search import Candidate, Infeasible
from trainer.compress.size import file_mib
from trainer.config import Budget
from trainer.description import Block, ViT, macs, param_count, uniform

ROUNDING = Rounding(mlp=8, head_dim=4, width=16)
SETTING = Setting(1, 1, "fp32")
MACHINE = {"cpu": "a", "features": "b", "int8": "no", "runtime": "c"}


def _by_macs(models: Sequence[ViT]) -> list[Timing]:
    """A machine that takes 1 ms a call and 1 µs a MAC."""
    return [Timing(1 + macs(model) / 1e3, 2.0, 0.0, 0.0) for model in models]


def _noisy(models: Sequence[ViT]) -> list[Timing]:
    factors = np.random.default_rng(0).uniform(0.5, 1.5, len(models))
    return [Timing(one.p50_ms * factor, 2.0, 0.0, 0.0) for one, factor in zip(_by_macs(models), factors)]


@pytest.mark.parametrize(
    "block", [Block(1, 4, 8, 24), Block(2, 7, 5, 9), Block(0, 0, 0, 16), Block(2, 8, 8, 0)]
)
@pytest.mark.parametrize("width", [16, 12, 5])
def test_the_sum_over_blocks_is_exact_where_time_is_linear_in_every_size(block: Block, width: int) -> None:
    table = latency_table.CostTable(latency_table.grid(SMALL, ROUNDING), _by_macs)
    model = dataclasses.replace(SMALL, width=width, blocks=(block, block))
    assert table(model) == pytest.approx(_by_macs([model])[0].p50_ms)


def test_however_noisy_the_table_a_larger_block_never_costs_less() -> None:
    table = latency_table.CostTable(latency_table.grid(SMALL, ROUNDING), _noisy)

    def cost(width: int, *sizes: int) -> float:
        return table(dataclasses.replace(SMALL, width=width, blocks=(Block(*sizes),)))

    least = (4, 1, 4, 4, 8)
    for axis, most in enumerate((16, 2, 8, 8, 32)):
        costs = [cost(*least[:axis], size, *least[axis + 1 :]) for size in range(least[axis], most + 1)]
        assert costs == sorted(costs)


def test_a_line_goes_through_the_two_measurements_nearest_to_the_budget() -> None:
    line = through([(0, 1), (10, 21), (20, 100)], near=11)
    assert (line.offset, line.slope) == (1, 2)
    assert line.sum_for(line.at(3)) == pytest.approx(3)
    assert through([(1, 5), (2, 4)], near=3).slope > 0  # noise that falls is not believed
    flat = through([(1, 1), (20, 20), (9.0, 10.2), (10.0, 10.3)], near=10)
    assert (flat.slope, flat.at(9.0)) == (1, pytest.approx(10.2))  # nor is noise that hardly rises


def _meet(asked: float, true: float, near: float = 0.03) -> list[float]:
    """What each search of a machine that takes sum^true was measured at."""
    found = meet(
        Target(asked, near, 4),
        [(1.0, 1.0), (20.0, 20.0**true)],
        search=lambda limit: limit,
        total=lambda limit: limit,
        measure=lambda limit: Measured(limit**true, 0.0),
    )
    return [attempt.measured.value for attempt in found]


@pytest.mark.parametrize("asked", [2.0, 5.0, 9.0])
@pytest.mark.parametrize("true", [0.8, 1.0, 1.3])
def test_searches_are_corrected_until_measured_within_three_percent_and_under(
    asked: float, true: float
) -> None:
    assert 0.97 * asked <= _meet(asked, true)[-1] <= asked


def test_a_model_timed_alone_has_no_others_beside_it() -> None:
    asked: list[int] = []

    def timer(models: Sequence[ViT]) -> list[Timing]:
        asked.append(len(models))
        return _by_macs(models)

    assert latency.one_by_one(timer)(_models(3)) == _by_macs(_models(3))
    assert asked == [1, 1, 1]


def test_who_measures_longer_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept of a moment when others used the machine is not all that more `budget.timing_seconds` gets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = list[float]()

    def timer(setting: Setting, seconds: float) -> Timer:
        def timed(models: Sequence[ViT]) -> list[Timing]:
            asked.append(seconds)
            return _by_macs(models)

        return timed

    monkeypatch.setattr(latency, "timer", timer)
    (most,) = _by_macs([SMALL])
    for seconds in (1.0, 1.0, 2.0):
        budget = Budget(latency_p50_ms=0.9 * most.p50_ms, timing_seconds=seconds)
        goals.of(budget, SMALL, ROUNDING)
    assert set(asked) == {1.0, 2.0}
    assert asked.count(1.0) == asked.count(2.0)


def test_an_interrupted_table_keeps_what_was_timed(tmp_path: Path) -> None:
    asked: list[int] = []

    def timer(models: Sequence[ViT]) -> list[Timing]:
        asked.append(len(models))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return _by_macs(models)

    kept = profiles.kept(timer, MACHINE, SETTING, tmp_path / "cache.json")
    with pytest.raises(KeyboardInterrupt):
        kept(_models(40))
    assert kept(_models(40)) == _by_macs(_models(40))
    assert asked == [16, 16, 16, 8]


def _models(count: int) -> list[ViT]:
    block = SMALL.blocks[0]
    return [
        dataclasses.replace(SMALL, blocks=(dataclasses.replace(block, mlp_dim=8 * (place + 1)),))
        for place in range(count)
    ]


def test_a_search_that_meets_the_budget_at_once_is_the_only_one() -> None:
    assert len(_meet(12.0, 1.0)) == 1


def test_what_is_within_the_budget_comes_before_what_is_nearer_but_above_it() -> None:
    values = iter([10.1, 9.0, 10.2, 8.0])
    found = meet(Target(10, 0, 4), [(0, 0), (20, 20)], float, float, lambda _: Measured(next(values), 0.0))
    assert found[-1].measured.value == 9.0


def test_a_timing_is_the_median_of_the_least_disturbed_rounds_with_that_of_all_beside_it() -> None:
    rounds = np.repeat([[1.5], [1.4], [1.0], [1.2], [1.1], [1.6], [1.3], [1.7], [1.8]], 5, axis=1)
    rounds[:, 0] = 99  # a run that was interrupted
    found = summary(rounds)
    assert (found.p50_ms, found.median_ms, found.p99_ms) == (1.2, 1.5, 99.0)
    assert found.spread == pytest.approx(0.4 / 1.2)


def test_timing_goes_on_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = iter(range(100)), list[int]()
    monkeypatch.setattr(turns.time, "monotonic", lambda: next(clock))
    turns.time_in_turns([SimpleNamespace(run=runs.append)], [1], 30.0)  # type: ignore[list-item]
    brief = len(runs)
    turns.time_in_turns([SimpleNamespace(run=runs.append)], [1])  # type: ignore[list-item]
    assert (brief, len(runs) - brief) == ((9 + 29) * 15, 9 * 15)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8_weights"])
@pytest.mark.parametrize(
    "model",
    [SMALL, UNEVEN, dataclasses.replace(SMALL, width=96, blocks=uniform(3, 4, 24, 320), pooling="cls")],
)
def test_the_size_of_the_file_is_known_from_the_description_within_a_percent(
    model: ViT, precision: str
) -> None:
    assert file_mib(model, precision) * 2**20 == pytest.approx(len(graph_bytes(model, precision)), rel=0.01)


def test_what_was_timed_is_not_timed_again_and_what_is_new_is(tmp_path: Path) -> None:
    asked = list[ViT]()

    def timer(models: Sequence[ViT]) -> list[Timing]:
        asked.extend(models)
        return _by_macs(models)

    kept = profiles.kept(timer, MACHINE, SETTING, tmp_path / "deep" / "cache.json")
    assert kept([SMALL, UNEVEN, SMALL]) == _by_macs([SMALL, UNEVEN, SMALL])
    assert asked == [SMALL, UNEVEN]
    wider = dataclasses.replace(SMALL, width=24)
    assert kept([UNEVEN, wider]) == _by_macs([UNEVEN, wider])
    assert asked == [SMALL, UNEVEN, wider]


def test_another_cpu_runtime_or_setting_has_another_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machines = [MACHINE, *({**MACHINE, name: "other"} for name in MACHINE)]
    settings = [SETTING, Setting(2, 1, "fp32"), Setting(1, 2, "fp32"), Setting(1, 1, "int8")]
    paths = {profiles.cache_path(machine, setting, "alone") for machine in machines for setting in settings}
    assert len(paths) == 20
    assert all(path.is_relative_to(tmp_path) for path in paths)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("vitforge-latency-2", "vitforge-latency-0"), "is of format 'vitforge-latency-0'"),
        (
            ('"threads": 1', '"threads": 8'),
            "is of batch=1 threads=8 precision=fp32, asked are batch=1 threads=1",
        ),
        (("{", "["), "is no latency profile"),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "cache.json"
    profiles.kept(_by_macs, MACHINE, SETTING, path)([SMALL])
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=said):
        profiles.read(path, SETTING)


def _goal(asked: float) -> goals.Goal:
    target = Target(asked, 0.03, 4)
    return goals.Goal("mib", "MiB", asked, target, 0.1, float, float, [(1, 2.0), (5, 8.0)], "here")  # type: ignore[arg-type]


def test_an_impossible_budget_is_refused_with_the_nearest_possible_one() -> None:
    with pytest.raises(UserError, match=r"budget.mib=1.5 is below the 2 MiB that the least cut needs"):
        goals._require_possible("mib", "MiB", 1.5, [2.0, 8.0])
    with pytest.raises(UserError, match=r"budget.mib=8 is not below the teacher's 8 MiB"):
        goals._require_possible("mib", "MiB", 8.0, [2.0, 8.0])
    goals._require_possible("mib", "MiB", 2.0, [2.0, 8.0])


def test_the_nearest_possible_latency_has_room_for_noise() -> None:
    with pytest.raises(
        UserError, match=r"budget.latency_p50_ms=1.5 is below the 2.06 ms that the least cut needs"
    ):
        goals._require_possible("latency_p50_ms", "ms", 1.5, [2.0, 8.0])


def test_a_timing_that_was_disturbed_gives_way_to_a_larger_model_that_took_less() -> None:
    """The least cut is on record with 2 ms, and a model of three times its sum took 1."""
    line = through([(1, 2.0), (3, 1.0), (9, 4.0)], 2.5)
    assert line == through([(1, 1.0), (3, 1.0), (9, 4.0)], 2.5)
    assert line.sum_for(2.5) == pytest.approx(5.0)  # by the slope between the ends


def test_a_search_that_cannot_cut_so_far_says_what_its_least_cut_takes() -> None:
    def search(limit: int) -> list[Candidate]:
        raise Infeasible("in units of the search", SMALL)

    goal = goals.Goal(
        "mib",
        "MiB",
        3,
        Target(3, 0.03, 4),
        0.1,
        param_count,
        lambda _: Measured(3.5, 0.0),
        [(1, 2), (9, 8)],
        "here",
    )
    said = r"budget\.mib=3 is less than this search can cut to: its least cut takes 3\.5 MiB"
    with pytest.raises(UserError, match=said):
        goals.reach(goal, SMALL, search)
