"""What is told as the nearest possible is possible."""

import pytest

from trainer.compress import nearest


@pytest.mark.parametrize(
    "value", [176 / 180, 158 / 180, 0.01234567, 0.0123, 1.5300049, 318_319_104.0, 20.0, 8.0, 0.0]
)
def test_what_is_told_can_be_asked_for_and_is_off_by_a_hundred_thousandth_at_most(value: float) -> None:
    least, most = float(nearest.at_least(value)), float(nearest.at_most(value))
    assert most <= value <= least
    assert least == pytest.approx(value, rel=1e-5)
    assert most == pytest.approx(value, rel=1e-5)


def test_what_is_told_is_short() -> None:
    assert (nearest.at_least(176 / 180), nearest.at_most(176 / 180)) == ("0.977778", "0.977777")
    for exact in ("0.5", "0.3", "8", "0.1"):
        assert nearest.at_least(float(exact)) == nearest.at_most(float(exact)) == exact
