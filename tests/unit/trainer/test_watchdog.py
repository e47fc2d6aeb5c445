"""A loop that gives no sign of life ends its process; what is alive is left alone. Several processes: tests/processes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from serving.command import ExitCode
from tests.support.trainings import ROOT
from trainer import watchdog
from trainer.watchdog import Watchdog

_LOOP = """
import sys, threading
from pathlib import Path
from trainer.watchdog import Watchdog

folder, what = Path(sys.argv[1]), sys.argv[2]
# Long beside what a busy machine takes for a tenth of a second, short beside what a test may take.
limit_s = {"off": 0.0, "stuck": 0.5}.get(what, 3.0)
with Watchdog(folder, limit_s) as watchdog:
    if what == "compiling":
        watchdog.at("compiling", 1)
        threading.Event().wait(4.0)
    elif what == "alive":
        for step in range(40):
            watchdog.at("stepping", step)
            threading.Event().wait(0.1)
    else:
        watchdog.at("stepping", 7)
        threading.Event().wait(1.2 if what == "off" else None)
print("ended")
"""


def run(folder: Path, what: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _LOOP, str(folder), what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_stuck_loop_ends_with_its_code_and_all_stacks(tmp_path: Path) -> None:
    code, _, log = run(tmp_path, "stuck")
    assert code == ExitCode.STALLED
    assert "error: stalled: process 0 has been stepping at step 7 for" in log
    assert "the limit is stall_after_s=0.5; all stacks are in" in log
    stacks = (tmp_path / "stacks-process-0.txt").read_text()
    assert "threading.py" in stacks
    assert 'File "<string>"' in stacks


@pytest.mark.parametrize("what", ["alive", "off", "compiling"])
def test_what_gives_signs_of_life_or_compiles_is_left_alone(what: str, tmp_path: Path) -> None:
    assert run(tmp_path, what) == (0, "ended\n", "")
    assert not list(tmp_path.iterdir())


def test_time_in_which_the_whole_process_was_stopped_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump_s, ended = 0.0, threading.Event()

    class Clock:
        """A clock that jumps, as it does for a process that is stopped for a while."""

        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + jump_s

    monkeypatch.setattr(watchdog, "time", Clock)
    monkeypatch.setattr(Watchdog, "_end", lambda self: ended.set())
    with Watchdog(tmp_path, 0.5) as watching:
        watching.at("stepping", 1)
        jump_s = 1000.0
        assert not ended.wait(0.3)
        assert ended.wait(60)  # but standing still from then on does
