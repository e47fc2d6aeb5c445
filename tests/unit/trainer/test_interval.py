"""Wilson's interval against published and independent values."""

import itertools
import math

import pytest

from trainer.interval import wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # R. G. Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_that_of_the_literature(right: int, count: int, low: float, high: float) -> None:
    # The table gives four decimals.
    assert wilson(right / count, count) == (pytest.approx(low, abs=5.1e-5), pytest.approx(high, abs=5.1e-5))


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 10), (0.9, 360), (0.03, 77), (0.999, 10_000)])
def test_its_ends_are_where_the_fraction_is_196_deviations_away(fraction: float, count: int) -> None:
    for end in wilson(fraction, count):
        deviations = abs(fraction - end) / math.sqrt(end * (1 - end) / count)
        assert deviations == pytest.approx(1.959964, rel=1e-6)  # a quadratic equation in doubles


@pytest.mark.parametrize("count", [1, 5, 360, 10_000])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_at_the_ends_it_stays_within_0_and_1_and_is_not_empty(fraction: float, count: int) -> None:
    low, high = wilson(fraction, count)
    # 0 and 1 are reached up to the rounding of doubles.
    assert 0 <= low < high <= 1
    assert min(abs(low - fraction), abs(high - fraction)) < 1e-12


def test_more_trials_make_it_narrower() -> None:
    widths = [high - low for low, high in (wilson(0.8, count) for count in (10, 100, 1000, 10_000))]
    assert all(wider > narrower for wider, narrower in itertools.pairwise(widths))


def test_an_error_rate_has_the_mirrored_interval_of_its_accuracy() -> None:
    low, high = wilson(0.3, 50)
    assert wilson(0.7, 50) == (pytest.approx(1 - high), pytest.approx(1 - low))
