"""What a launcher does when a job ends: the exit-code table decides whether it starts again, and progress whether it goes on so.

Preempted (42): again, and not counted. Stalled (43), a lost process (44), deaths of the runtime (134, 137, 139, 143): again,
counted. Bad input (2), a bug (1), a full disk (45), Ctrl-C (130): never, as it would end so again, or somebody wants it to.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.command import ExitCode
from tools.launchers.job import RUNTIME_DEATHS

NOT_COUNTED = frozenset({ExitCode.PREEMPTED})
COUNTED = frozenset({ExitCode.STALLED, ExitCode.LOST_PEER}) | RUNTIME_DEATHS
WITHOUT_PROGRESS = 3  # starts in a row that get no further end a job
_LONGEST_WAIT_S = 60.0
UNKNOWN = -1  # in place of a step


@dataclass(frozen=True)
class Ended:
    """How one attempt ended, and why; `final`: somebody asked the launcher to stop, or its time was over."""

    code: int
    final: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Restarts:
    """How often a job may start again (0: never), how many starts in a row may get no further, and the first, doubling wait."""

    most: int
    without_progress: int = WITHOUT_PROGRESS
    first_wait_s: float = 1.0


def supervised(
    attempt: Callable[[], Ended],
    restarts: Restarts,
    reached: Callable[[], int | None],
    say: Callable[[str], None],
    wait: Callable[[float], None],
) -> int:
    """Attempts until the job is done or is not to be attempted again; its last exit code.

    `reached` is the newest step whose checkpoint is whole, None where there is none, and UNKNOWN where that could not be seen: no
    sign that the job got no further.
    """
    counted, idle, last = 0, 0, reached()
    while True:
        ended = attempt()
        if not restarts.most or ended.final or ended.code not in NOT_COUNTED | COUNTED:
            return ended.code
        now = reached()
        if now != UNKNOWN:
            idle, last = (idle + 1 if now == last else 0), now
        counted += ended.code in COUNTED
        if counted > restarts.most:
            say(
                f"ended with code {ended.code} again after {restarts.most} restarts (--max_restarts): giving up"
            )
            return ended.code
        if idle >= restarts.without_progress:
            say(f"{idle} starts in a row got no further than {_place(now)}: giving up; see the logs for why")
            return ended.code
        wait_s = min(restarts.first_wait_s * 2 ** max(0, counted - 1), _LONGEST_WAIT_S)
        count = f"restart {counted} of {restarts.most}" if ended.code in COUNTED else "not counted"
        say(f"code {ended.code}: starting again in {wait_s:g} s, from {_place(now)} ({count})")
        wait(wait_s)


def _place(step: int | None) -> str:
    if step == UNKNOWN:
        return "where it was"
    return "the beginning" if step is None else f"step {step}"
