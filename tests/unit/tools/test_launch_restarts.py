"""Whether a job starts again: by its exit code, how often it did, and whether it gets on."""

from collections.abc import Iterator

import pytest

from serving.command import ExitCode
from tools.launchers.restarts import UNKNOWN, Ended, Restarts, supervised


def outcome(
    codes: list[int], reached: list[int | None], most: int = 10, final: bool = False
) -> tuple[int, int, list[float], list[str]]:
    """(last code, attempts, waits, what was said) of a job whose attempts end with `codes`, and reach these steps."""
    coming: Iterator[int] = iter(codes)
    places, attempts, waits, said = iter([None, *reached]), [], [], []

    def attempt() -> Ended:
        attempts.append(1)
        return Ended(next(coming), final)

    code = supervised(attempt, Restarts(most), lambda: next(places), said.append, waits.append)  # type: ignore[func-returns-value]
    return code, len(attempts), waits, said


@pytest.mark.parametrize("code", [0, 1, 2, 45, 130])
def test_what_would_end_so_again_or_is_done_does_not_start_again(code: int) -> None:
    assert outcome([code], []) == (code, 1, [], [])


@pytest.mark.parametrize("code", [42, 43, 44, 134, 137, 139, 143])
def test_what_died_or_was_preempted_starts_again_from_its_newest_checkpoint(code: int) -> None:
    last, attempts, waits, said = outcome([code, 0], [20])
    assert (last, attempts, waits) == (0, 2, [1.0])
    counted = "not counted" if code == 42 else "restart 1 of 10"
    assert said == [f"code {code}: starting again in 1 s, from step 20 ({counted})"]


def test_who_was_asked_to_stop_or_is_out_of_time_is_not_started_again() -> None:
    assert outcome([ExitCode.PREEMPTED], [], final=True)[:2] == (42, 1)


def test_restarts_end_and_preemptions_are_not_counted() -> None:
    last, attempts, _, said = outcome([137, 42, 42, 137, 137], [1, 2, 3, 4, 5], most=2)
    assert (last, attempts) == (137, 5)
    assert said[-1] == "ended with code 137 again after 2 restarts (--max_restarts): giving up"


@pytest.mark.parametrize("code", [42, 137])
def test_without_restarts_the_first_end_is_the_last(code: int) -> None:
    assert outcome([code], [1], most=0) == (code, 1, [], [])


def test_a_job_that_gets_no_further_is_given_up() -> None:
    last, attempts, waits, said = outcome([42, 43, 137, 137], [10, 10, 10, 10])
    assert (last, attempts, waits) == (137, 4, [1.0, 1.0, 2.0])
    assert said[-1] == "3 starts in a row got no further than step 10: giving up; see the logs for why"
    assert outcome([137] * 3, [None] * 3)[3][-1].startswith(
        "3 starts in a row got no further than the beginning"
    )


def test_progress_makes_patience_new() -> None:
    assert outcome([43] * 6 + [0], [None, None, 5, 5, 5, 9])[:2] == (0, 7)


def test_waits_grow_with_every_restart_up_to_a_minute() -> None:
    _, _, waits, _ = outcome([137] * 9 + [0], list(range(9)))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_place_that_nobody_can_see_is_no_sign_of_standing_still() -> None:
    last, attempts, _, said = outcome([137] * 6 + [0], [UNKNOWN] * 6)
    assert (last, attempts) == (0, 7)
    assert said[0] == "code 137: starting again in 1 s, from where it was (restart 1 of 10)"
