"""What a run's time goes to."""

from collections.abc import Iterator

import jax
import pytest

from tests.support.small_models import SMALL, UNEVEN
from trainer import rates
from trainer.description import macs
from trainer.rates import Rates, flops_per_image, peak_flops


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    return clock


def spend(run: Rates, clock: Clock, what: str, seconds: float) -> None:
    with run.spending(what):
        clock.now_s += seconds


def test_rates_are_of_steps_and_their_input_alone(clock: Clock) -> None:
    run = Rates(batch=32)
    spend(run, clock, "start", 5.0)
    spend(run, clock, "compile", 3.0)
    for _ in range(4):
        spend(run, clock, "input", 0.1)
        clock.now_s += 0.4
        run.step()
    spend(run, clock, "save", 2.0)
    said = run.lap()
    assert said["images_per_s"] == pytest.approx(4 * 32 / 2.0)
    assert said["images_per_s_per_device"] == pytest.approx(64 / jax.device_count())
    assert said["input_wait"] == pytest.approx(0.2)
    assert said["goodput"] == pytest.approx(1.6 / 12)
    assert "mfu" not in said  # a CPU's peak is not known

    clock.now_s += 1.0
    run.step()
    assert run.lap()["images_per_s"] == pytest.approx(32)
    assert run.images_per_s == pytest.approx(5 * 32 / 3.0)
    assert run.spent_s == pytest.approx({"start": 5, "compile": 3, "input": 0.4, "save": 2})


def test_mfu_counts_what_the_model_needs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "peak_flops", lambda kind: 1e9)
    run = Rates(batch=10)
    run.flops = 1e6
    clock.now_s += 2.0
    run.step()
    assert run.lap()["mfu"] == pytest.approx(5 * 1e6 / (1e9 * jax.device_count()))


def test_operations_are_three_passes_of_the_student_and_one_of_a_teacher() -> None:
    assert flops_per_image(SMALL, None) == 6 * macs(SMALL)
    assert flops_per_image(SMALL, UNEVEN) == 6 * macs(SMALL) + 2 * macs(UNEVEN)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("NVIDIA H200 141GB", 989e12),
        ("cpu", None),
    ],
)
def test_peaks_go_by_the_longest_name_that_fits(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak
