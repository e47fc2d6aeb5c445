"""Back ends of the launcher by the name that its user types; `tools.launch` asks here and knows none of them.

A back end takes a whole job and answers with one exit code of the table in `serving.command`. Whether the job starts again is not
its business (`restarts`).
"""

from collections.abc import Callable
from typing import Protocol

from serving.command import UserError
from tools.launchers.job import Job
from tools.launchers.local import LocalLauncher
from tools.launchers.restarts import Ended


class Launcher(Protocol):
    """Starts the processes of a job somewhere."""

    def describe(self, job: Job) -> list[str]:
        """What would run, one line per process; starts nothing."""

    def run(self, job: Job) -> Ended:
        """Runs the job to its end, once."""


LAUNCHERS: dict[str, Callable[[], Launcher]] = {"local": LocalLauncher}
PLANNED = ("ssh", "slurm", "jobset", "tpu_vm")


def launcher_named(name: str) -> Launcher:
    """The back end called `name`.

    Raises:
      UserError: when there is none.
    """
    if name in LAUNCHERS:
        return LAUNCHERS[name]()
    known = f"there is {', '.join(LAUNCHERS)} now, and {', '.join(PLANNED)} are planned"
    raise UserError(f"--backend={name}: no such back end; {known}")
