"""Ends a job that gets no further, where a scheduler counts its restarts and knows nothing of progress.

    python -m tools.launchers.breaker --workdir=DIR -- COMMAND…

Process 0 of the job notes in DIR/starts.jsonl from which step each start goes on; when that has been the same step too often in a
row, it ends with the code of bad input, which is never retried. Otherwise, and in every other process, COMMAND takes this
process's place.
"""

import json
import os
import sys
from pathlib import Path

from serving import command
from serving.command import UserError
from tools.launchers.restarts import WITHOUT_PROGRESS
from trainer.distributed import jobs
from trainer.workdir import steps

STARTS = "starts.jsonl"


def main(argv: list[str]) -> None:
    """Goes on as COMMAND, or ends."""
    at = argv.index("--")
    workdir = Path(argv[0].removeprefix("--workdir="))
    job = jobs.job_of(os.environ)
    if job is None or job.index == 0:
        note_start(workdir)
    words = argv[at + 1 :]
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    os.execvp(words[0], words)


def note_start(workdir: Path) -> None:
    """Notes a start from the newest whole checkpoint under `workdir`.

    Raises:
      UserError: when the starts before it began there, too.
    """
    here = next(iter(steps(workdir)[::-1]), None)
    file = workdir / STARTS
    run = os.environ.get(jobs.RUN, "")
    noted = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    before = [start["step"] for start in noted if start["run"] == run]
    if before[-WITHOUT_PROGRESS:] == [here] * WITHOUT_PROGRESS:
        place = "the beginning" if here is None else f"step {here}"
        raise UserError(
            f"{WITHOUT_PROGRESS} starts in a row got no further than {place}; see the logs for why"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as starts:
        print(json.dumps({"run": run, "step": here}), file=starts)


if __name__ == "__main__":
    command.run_command(main)
