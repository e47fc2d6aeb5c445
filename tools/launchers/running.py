"""Running a job whose back end stays with it: attempts, restarts, and a record of them."""

import sys
import time
from pathlib import Path

from serving.command import UserError
from tools.launchers.job import Job
from tools.launchers.launcher import Attending
from tools.launchers.records import Record
from tools.launchers.restarts import Ended, Restarts, supervised
from trainer.workdir import steps


def say(text: str) -> None:
    """Tells whoever watches the launcher."""
    print(f"[launch] {text}", file=sys.stderr, flush=True)


def newest_step(job: Job) -> int | None:
    """Of the checkpoints in the job's workdir, where this machine sees it."""
    workdir = job.option("workdir")
    return next(iter(steps(Path(workdir))[::-1]), None) if workdir else None


def to_the_end(launcher: Attending, job: Job, record: Record | None) -> Ended:
    """Attempts the job until it is done or is not to be attempted again.

    Raises:
      UserError: when it cannot be attempted at all; the record says so, too.
    """
    try:
        launcher.prepare(job)
        ended = _attempts(launcher, job, record)
    except UserError as error:
        if record:
            record.note(state="ended", code=error.exit_code, reason=str(error))
        raise
    finally:
        launcher.release(job.name)
    if record:
        record.note(
            state="ended", code=ended.code, reason=ended.reason, stopped=ended.final, step=newest_step(job)
        )
    return ended


def _attempts(launcher: Attending, job: Job, record: Record | None) -> Ended:
    last: list[Ended] = []

    def attempt() -> Ended:
        last[:] = [launcher.attempt(job, record.next_attempt() if record else None)]
        return last[0]

    def wait(seconds: float) -> None:
        if record:
            record.note(state="restarting", code=last[0].code, reason=last[0].reason, step=newest_step(job))
        time.sleep(seconds)

    code = supervised(attempt, Restarts(job.max_restarts), lambda: newest_step(job), say, wait)
    return Ended(code, last[0].final, last[0].reason)
