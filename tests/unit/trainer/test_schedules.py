"""Schedules at the beginning, the middle and the end of a run."""

import math

import jax
import pytest

from trainer.schedules import CONSTANT, decay

# float32 of numbers up to 4: 24 bits, and a cosine whose argument is rounded as well.
FLOAT32 = 1e-6


@pytest.mark.parametrize(("kind", "quarter"), [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2)])
@pytest.mark.parametrize(("begin", "end"), [(0.9, 0.5), (1.0, 4.0)])
def test_a_decay_goes_from_its_begin_by_the_middle_to_its_end(
    kind: str, quarter: float, begin: float, end: float
) -> None:
    value = decay(begin, end, 200, kind)
    shares = {0: 0.0, 50: quarter, 100: 0.5, 200: 1.0, 300: 1.0}
    for step, share in shares.items():
        assert float(value(step)) == pytest.approx(begin + (end - begin) * share, abs=FLOAT32)


def test_without_an_end_it_is_a_plain_number() -> None:
    """So that the compiled step is the one without a schedule, to the last bit."""
    assert decay(0.9, CONSTANT, 10, "cosine")(5) == 0.9
    assert decay(0.9, 0.9, 10, "linear")(5) == 0.9
    assert isinstance(decay(0.9, CONSTANT, 10, "cosine")(5), float)


def test_a_step_may_be_traced() -> None:
    value = decay(0.0, 1.0, 4, "linear")
    assert [float(jax.jit(value)(step)) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
