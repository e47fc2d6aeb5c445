"""What every back end is. Some stay with their processes to the end (local, ssh, tpu_vm); others hand the job to a scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from serving.command import UserError
from tools.launchers.job import Job
from tools.launchers.restarts import Ended
from tools.launchers.secrets import KINDS, kind_of


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at: fine when there is no `problem`; else `remedy` says what to do."""

    what: str
    problem: str = ""
    remedy: str = ""


class Launcher(Protocol):
    """Starts the processes of jobs somewhere. Its fields are its flags."""

    def placed(self, job: Job) -> Job:
        """`job` with its number of processes, and of devices where they are known; touches nothing.

        Raises:
          UserError: when the job cannot run there.
        """

    def render(self, job: Job) -> dict[str, str]:
        """Everything that would run, as files by name: the same for the same job, and without a secret's value."""

    def doctor(self, job: Job) -> list[Finding]:
        """What is needed for the job, and what of it is missing."""


@runtime_checkable
class Attending(Launcher, Protocol):
    """Stays with the processes."""

    def prepare(self, job: Job) -> None:
        """Whatever is needed once, before the first attempt.

        Raises:
          UserError: naming what is missing.
        """

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """Runs the job to its end, once; the output of process N goes to `logs`/process_N.log, too."""

    def reached(self, job: Job) -> int | None:
        """The newest step whose checkpoint is whole in the job's workdir; None before the first, UNKNOWN where nobody can say."""

    def release(self, job: Job) -> None:
        """Gives back what the back end made for a job that has ended, or whose launcher died."""


@dataclass(frozen=True)
class Seen:
    """What a scheduler says of a job: waiting, running or ended, in its own words, and with which code where it knows."""

    state: str
    words: str
    code: int | None = None


@runtime_checkable
class Submitting(Launcher, Protocol):
    """Hands jobs to a scheduler, and asks it about them later. A sweep is handed over as a whole."""

    def render_all(self, points: Sequence[Job], name: str) -> dict[str, str]:
        """`render` for every job of a sweep."""

    def submit(self, points: Sequence[Job], name: str, rendered: Path) -> str:
        """The scheduler's name for the job, or for the sweep, whose rendered files are in `rendered`."""

    def look(self, handle: str) -> Seen:
        """How the job is."""

    def point(self, handle: str, number: int, name: str) -> str:
        """The scheduler's name for one job of a sweep."""

    def logs(self, handle: str, follow: bool, since_s: float) -> Sequence[str] | None:
        """A command that shows what all processes wrote in the last `since_s` seconds, or ever (0); None: the record has it."""

    def stop(self, handle: str) -> None:
        """Asks the scheduler to end the job."""


def refuse_secrets_of(job: Job, *kinds: str) -> None:
    """Refuses secrets of kinds that a back end cannot look up.

    Raises:
      UserError: naming the first.
    """
    for name, reference in job.secrets.items():
        if kind_of(reference) in kinds:
            allowed = ", ".join(kind for kind in KINDS if kind not in kinds)
            raise UserError(f"--secret={name}: this back end looks up {allowed}, not {kind_of(reference)}")


def refuse_fields(job: Job, backend: str, *names: str) -> None:
    """Refuses what a back end has no use for.

    Raises:
      UserError: naming the first that is given.
    """
    for name in names:
        if getattr(job, name):
            raise UserError(f"--{name} says nothing to --backend={backend}; leave it out")
