"""What a user asks the launcher for: flags, a job's file, a sweep, as typed or as kept in the record of a job."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError
from tools import launchers
from tools.launchers import description, fits, options, sweep
from tools.launchers.job import Job
from tools.launchers.launcher import Launcher
from tools.launchers.records import Record

_OF_VERBS, _SWITCHES_OF_VERBS = ("output", "records", "process"), ("dry_run", "plan", "follow", "wait")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was typed: flags, and the jobs they describe, more than one for a sweep."""

    values: flags.FlagValues
    own: list[str]
    behind: tuple[str, ...]
    sweep: list[str]

    @property
    def records(self) -> Path:
        return Path(self.values["records"].value)

    @property
    def name(self) -> str:
        return self.values["name"].value or ""

    def launcher(self) -> Launcher:
        backend = launchers.require_backend(self.values["backend"].value)
        return options.read(self.values, launchers.LAUNCHERS, backend)

    def placed(self, launcher: Launcher) -> list[Job]:
        """The jobs as the back end would run them."""
        job = description.job_of(self.values, self.behind)
        points = [point.job for point in sweep.points(job, self.sweep)] if self.sweep else [job]
        return [launcher.placed(point) for point in points]

    def jobs(self, launcher: Launcher) -> list[Job]:
        """The jobs, placed and fitting."""
        placed = self.placed(launcher)
        for job in placed:
            fits.require_fit(job)
        return placed

    def require_name(self) -> str:
        """What the job is known by.

        Raises:
          UserError: when nobody said.
        """
        name = self.name or description.job_of(self.values, self.behind).name
        if not name:
            raise UserError("give the job a --name, by which status, logs and stop know it")
        return name

    def describing(self) -> list[str]:
        """The arguments that say what the job is, without those that say what is done with it now."""
        rest = self.own
        for name in _OF_VERBS:
            rest, _ = _take(rest, f"--{name}")
        return [word for word in rest if not _is_switch_of_verbs(word)]

    def describing_point(self, job: Job) -> list[str]:
        """The arguments that say what one job of a sweep is."""
        rest, _ = sweep.split_sweep(self.describing())
        return [*rest, f"--name={job.name}"]


def typed(own: list[str], behind: tuple[str, ...]) -> tuple[Asked, list[str]]:
    """(What was asked for, the words among it that are no flags), of the launcher's own arguments and the command.

    Raises:
      UserError: for an unknown flag, or a file of a job that describes none.
    """
    own, behind = _with_file(own, behind)
    rest, words = sweep.split_sweep(own)
    values = _flags()
    extra = command.parse_flags(values, rest)
    return Asked(values, own, behind, words), extra


def described(record: Record) -> Asked:
    """What was asked for when a job was recorded.

    Raises:
      UserError: when this version does not know it.
    """
    return typed(*record.described())[0]


def _with_file(own: list[str], behind: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Puts what the file of --job says before what was typed."""
    typed, files = _take(own, "--job")
    if not files:
        return own, behind
    words, there = description.of_file(Path(files[-1]))
    rest, swept = sweep.split_sweep(words)
    _, backends = _take([*words, *typed], "--backend")
    rest = options.without_those_of_others(rest, launchers.LAUNCHERS, backends[-1] if backends else "local")
    instead = [] if sweep.split_sweep(typed)[1] or not swept else ["--sweep", *swept]
    return [*rest, *instead, *typed], behind or there


def _take(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """(The other words, the values of `flag`), given as --flag=VALUE or --flag VALUE."""
    rest, values, pending = [], [], list(words)
    while pending:
        word = pending.pop(0)
        if word.startswith(f"{flag}="):
            values.append(word.partition("=")[2])
        elif word == flag and pending:
            values.append(pending.pop(0))
        else:
            rest.append(word)
    return rest, values


def _is_switch_of_verbs(word: str) -> bool:
    return word.removeprefix("--no").removeprefix("--").partition("=")[0] in _SWITCHES_OF_VERBS


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "backend", "local", f"Where the processes run: {', '.join(launchers.LAUNCHERS)}.", flag_values=values
    )
    flags.DEFINE_string(
        "records", "runs/launch", "Folder with a record of each job that has a name.", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "Print what would run, and start nothing.", flag_values=values)
    flags.DEFINE_bool(
        "plan",
        False,
        "Compile the training for its --topology first, and refuse what does not fit.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "Folder for what `render` makes; shown, if not given.", flag_values=values
    )
    flags.DEFINE_bool("follow", False, "Of `logs`: stay until the job has ended.", flag_values=values)
    flags.DEFINE_integer("process", None, "Of `logs`: that process alone.", 0, flag_values=values)
    flags.DEFINE_bool(
        "wait", False, "Of `status`: stay until the job has ended, with its code.", flag_values=values
    )
    description.define_flags(values)
    options.define(values, launchers.LAUNCHERS)
    # For the help alone: taken out of the arguments before flags are parsed.
    flags.DEFINE_string(
        "sweep", None, "KEY=VALUE,VALUE… KEY=…: a job for each combination.", flag_values=values
    )
    return values
