"""Running a job whose back end stays with it: attempts, restarts, and a record of them."""

import contextlib
import signal
import sys
import time
from pathlib import Path

from serving.command import ExitCode, UserError
from tools.launchers.job import Job, table_code
from tools.launchers.launcher import Attending
from tools.launchers.records import Record
from tools.launchers.restarts import Ended, Restarts, supervised
from tools.stop_requests import Stopped, StopRequests
from trainer.workdir import steps


def say(text: str) -> None:
    """Tells whoever watches the launcher, if anybody does."""
    with contextlib.suppress(OSError):
        print(f"[launch] {text}", file=sys.stderr, flush=True)


def newest_step(job: Job) -> int | None:
    """Of the checkpoints in the job's workdir, where this machine sees it."""
    workdir = job.option("workdir")
    return next(iter(steps(Path(workdir))[::-1]), None) if workdir else None


def to_the_end(launcher: Attending, job: Job, record: Record | None) -> Ended:
    """Attempts the job until it is done or is not to be attempted again; what the back end made for it is given back in any case.

    A request to stop that comes while no process runs (hosts are asked, capacity or a restart is waited for) ends it there.

    Raises:
      UserError: when it cannot be attempted at all; the record says so, too.
    """
    with StopRequests() as requests:
        try:
            launcher.prepare(job)
            ended = _released(launcher, job, record, requests)
        except Stopped as stopped:
            say(f"{stopped}: stopped")
            ended = Ended(_stopped_code(stopped), True, f"stopped by {stopped}")
        except UserError as error:
            _note(record, Ended(error.exit_code, True, str(error)))
            raise
    _note(record, ended)
    return ended


def _released(launcher: Attending, job: Job, record: Record | None, requests: StopRequests) -> Ended:
    try:
        return _attempts(launcher, job, record)
    finally:
        with requests.deferred():
            try:
                launcher.release(job)
            except UserError as error:  # the job has ended as it has
                say(f"error: {error}")


def _stopped_code(stopped: Stopped) -> int:
    return ExitCode.INTERRUPTED if stopped.number == signal.SIGINT else table_code(-signal.SIGTERM)


def _note(record: Record | None, ended: Ended) -> None:
    if record:
        record.note(state="ended", code=ended.code, reason=ended.reason)


def _attempts(launcher: Attending, job: Job, record: Record | None) -> Ended:
    last: list[Ended] = []

    def attempt() -> Ended:
        last[:] = [launcher.attempt(job, record.next_attempt() if record else None)]
        return last[0]

    def wait(seconds: float) -> None:
        if record:
            record.note(state="restarting", code=last[0].code, reason=last[0].reason)
        time.sleep(seconds)

    code = supervised(attempt, Restarts(job.max_restarts), lambda: launcher.reached(job), say, wait)
    return Ended(code, last[0].final, last[0].reason)
