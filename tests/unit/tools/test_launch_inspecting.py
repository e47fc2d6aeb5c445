"""How a job is, when it ends while it is looked at."""

import dataclasses
from pathlib import Path

import pytest

from serving.command import ExitCode
from tools.launchers import inspecting
from tools.launchers.inspecting import State
from tools.launchers.launcher import Launcher, Seen
from tools.launchers.local import LocalLauncher
from tools.launchers.records import Record
from tools.launchers.slurm import SlurmLauncher

SAVED = State("ended", "preempted", ExitCode.PREEMPTED, 0)


class EndsWhenLookedAt(Record):
    """A running job that notes its end, and ends, in the moment in which it is asked whether it still runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir()
        self.begin("any")
        self.note(state="running", attempt=0, code=None, reason="")

    def end(self) -> None:
        self.note(state="ended", code=int(ExitCode.PREEMPTED), reason="preempted")

    def is_held(self) -> bool:
        self.end()
        return False


@dataclasses.dataclass(frozen=True)
class Queue(SlurmLauncher):
    """A queue that the job leaves in that moment."""

    record: EndsWhenLookedAt | None = None

    def look(self, handle: str) -> Seen:
        assert self.record
        self.record.end()
        return Seen("ended", "not in the queue any more")


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_job_that_ends_while_it_is_looked_at_has_its_code(handed_over: bool, tmp_path: Path) -> None:
    record = EndsWhenLookedAt(tmp_path / "job")
    launcher: Launcher = LocalLauncher()
    if handed_over:
        launcher, record.handle = Queue(record=record), "7"
    assert inspecting.state_of(launcher, record) == SAVED
