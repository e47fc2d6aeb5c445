"""Runs one command as the several processes of a distributed job: on this machine, over ssh, on Slurm, TPU VMs or Kubernetes.

    python -m tools.launch run --backend=local --processes=2 --devices_per_process=4 \\
        -- python -m trainer.main --config=configs/digits.py:teacher --workdir=runs/teacher
    python -m tools.launch run --backend=ssh --hosts=lab1,lab2 --name=teacher -- python -m trainer.main …
    python -m tools.launch render --backend=jobset --job=job.toml --output=manifests
    python -m tools.launch status | logs --follow | stop   --name=teacher

Everything behind -- reaches the processes as typed; no shell reads it.

Verbs:
  run      start the job. local, ssh and tpu_vm stay with it, show its output on stderr, headed by the number of the process, and
           answer with one exit code; slurm and jobset hand it over and say its number. SIGTERM and Ctrl-C ask all processes to save
           and end; after Ctrl-C the exit code is 130.
  render   everything that would run, as files in --output, or shown
  status   how jobs with a name are; of a sweep, a table of results. --wait stays until the end, and ends with the job's code.
  logs     what the processes of a job wrote, headed by their numbers; --follow stays until the job has ended
  stop     ask a job to save and end
  doctor   what is missing: tools, credentials, hosts that do not answer, versions that differ, a workdir that is not shared

A job with a --workdir starts again, from its newest checkpoint, when it was preempted (42), stalled (43), or a process was lost
or died (44, 134, 137, 139, 143): --max_restarts times, preemptions not counted, until three starts in a row got no further. Every
other code ends it. --sweep base_lr=0.01,0.03 wd=0.03,0.1 makes a job of each combination, with a workdir of its own.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError
from tools import launchers
from tools.launchers import description, fits, inspecting, options, planned, sweep
from tools.launchers.job import Job
from tools.launchers.launcher import Launcher, Submitting
from tools.launchers.records import Record, recorded, write_files
from tools.launchers.running import say, to_the_end

_NOTHING = ("python3", "-c", "")  # that the doctor would run where no command is given


@dataclasses.dataclass(frozen=True)
class _Asked:
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

    def jobs(self, launcher: Launcher) -> list[Job]:
        """The jobs, placed and fitting."""
        job = description.job_of(self.values, self.behind)
        points = [point.job for point in sweep.points(job, self.sweep)] if self.sweep else [job]
        placed = [launcher.placed(point) for point in points]
        for point in placed:
            fits.require_fit(point)
        return placed


def main(argv: list[str]) -> dict[str, object] | None:
    """Does what the verb in `argv` says; leaves with the exit code of a job that failed."""
    own, behind = description.split_command(argv)
    verb = own.pop(0) if own and not own[0].startswith("-") else ""
    own, behind = _with_file(own, behind)
    rest, words = sweep.split_sweep(own)
    values = _flags()
    extra = command.parse_flags(values, rest)
    if verb not in _VERBS:
        problem = f"no such verb: {verb!r}" if verb else "say what to do"
        raise UserError(
            f"{problem}; there are {', '.join(name for name in _VERBS if name != 'attend')} (see --help)"
        )
    if extra:
        raise description.misplaced(extra[0])
    return _VERBS[verb](_Asked(values, own, behind, words))


def _with_file(own: list[str], behind: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Puts what the file of --job says before what was typed."""
    given = [word for word in own if word.startswith("--job=")]
    if not given:
        return own, behind
    words, described = description.of_file(Path(given[-1].partition("=")[2]))
    typed = [word for word in own if not word.startswith("--job=")]
    if "--sweep" in typed and "--sweep" in words:
        words = words[: words.index("--sweep")]
    return [*words, *typed], behind or described


def _run(asked: _Asked) -> dict[str, object] | None:
    launcher = asked.launcher()
    jobs = asked.jobs(launcher)
    if asked.values["plan"].value:
        planned.require_plan(jobs[0])
    if asked.values["dry_run"].value:
        _show(_rendered(launcher, jobs, asked))
        return None
    if isinstance(launcher, Submitting):
        return _submit(launcher, jobs, asked)
    local_and_nameless = asked.values["backend"].value == "local" and not asked.name
    code = (
        _run_here(launcher, jobs[0], None)
        if local_and_nameless and not asked.sweep
        else _run_recorded(launcher, jobs, asked)
    )
    if code:
        # The launcher has said why; the code may be a runtime's death, which no error of ours stands for.
        raise SystemExit(code)
    return None


def _run_here(launcher: Launcher, job: Job, record: Record | None) -> int:
    return to_the_end(launcher, job, record).code  # type: ignore[arg-type]


def _run_recorded(launcher: Launcher, jobs: Sequence[Job], asked: _Asked) -> int:
    """One job after the other; the code of the first that failed."""
    parent = Record(asked.records / _require_name(jobs, asked))
    worst = 0
    with parent.held():
        if asked.sweep:
            _keep(parent, asked, asked.own, asked.behind)
            parent.note(state="running", jobs=len(jobs))
        for number, job in enumerate(jobs):
            if asked.sweep:
                say(f"job {number + 1} of {len(jobs)}: {job.name}")
            record, ended = parent, None
            if asked.sweep:
                record = Record(asked.records / job.name)
                if _is_done(record, job):
                    say(f"{job.name} is done")
                    continue
                with record.held():
                    ended = _run_one(launcher, job, record, asked)
            else:
                ended = _run_one(launcher, job, record, asked)
            worst = worst or ended[0]
            if ended[1]:
                break
        if asked.sweep:
            parent.note(state="ended", code=worst)
            rows = inspecting.show_sweep(parent, jobs)
            print(command.json_text({"name": parent.name, "jobs": rows}), flush=True)
    return worst


def _run_one(launcher: Launcher, job: Job, record: Record, asked: _Asked) -> tuple[int, bool]:
    """(Exit code, whether somebody asked to stop) of a job with a record, which is held."""
    _keep(record, asked, _flags_of(asked, job), job.command)
    record.render(launcher.render(job))
    ended = to_the_end(launcher, job, record)  # type: ignore[arg-type]
    return ended.code, ended.final


def _submit(launcher: Submitting, jobs: Sequence[Job], asked: _Asked) -> dict[str, object]:
    name = _require_name(jobs, asked)
    parent = Record(asked.records / name)
    with parent.held():
        if parent.exists() and inspecting.state_of(launcher, parent).is_open:
            raise UserError(f"a job {name} is there already; stop it, or give this one another --name")
        _keep(parent, asked, asked.own, asked.behind)
        if asked.sweep:
            for job in jobs:
                _keep(Record(asked.records / job.name), asked, _flags_of(asked, job), job.command)
        rendered = parent.render(launcher.render_all(jobs, name))
        handle = launcher.submit(jobs, name, rendered)
        parent.note(state="submitted", handle=handle)
    say(f"handed over as {handle}; see it with: status --name={name}, logs --follow --name={name}")
    return {"name": name, "backend": asked.values["backend"].value, "handle": handle, "jobs": len(jobs)}


def _keep(record: Record, asked: _Asked, own: Sequence[str], behind: tuple[str, ...]) -> None:
    record.folder.mkdir(parents=True, exist_ok=True)
    record.describe(own, behind)
    record.begin(asked.values["backend"].value)


def _flags_of(asked: _Asked, job: Job) -> list[str]:
    """The arguments that describe one job of a sweep."""
    rest, _ = sweep.split_sweep(asked.own)
    return [*rest, f"--name={job.name}"]


def _is_done(record: Record, job: Job) -> bool:
    """Whether a job of a sweep, as it is asked for, has ended well before."""
    return record.exists() and record.state().get("code") == 0 and record.described()[1] == job.command


def _require_name(jobs: Sequence[Job], asked: _Asked) -> str:
    name = asked.name or description.job_of(asked.values, asked.behind).name
    if not name:
        raise UserError("give the job a --name, by which status, logs and stop know it")
    return name


def _attend(asked: _Asked) -> None:
    """What a batch script runs: the job of a record, where its scheduler has put it."""
    record = recorded(asked.records, asked.name)
    kept, behind = record.described()
    values = _flags()
    command.parse_flags(values, kept)
    again = _Asked(values, kept, behind, [])
    launcher = again.launcher()
    with record.held():
        code = _run_here(launcher, again.jobs(launcher)[0], record)
    if code:
        raise SystemExit(code)


def _render(asked: _Asked) -> dict[str, object] | None:
    launcher = asked.launcher()
    jobs = asked.jobs(launcher)
    files = _rendered(launcher, jobs, asked)
    if not asked.values["output"].value:
        _show(files)
        return None
    folder = write_files(Path(asked.values["output"].value), files)
    return {"output": str(folder), "files": sorted(files)}


def _rendered(launcher: Launcher, jobs: Sequence[Job], asked: _Asked) -> dict[str, str]:
    if isinstance(launcher, Submitting):
        return launcher.render_all(jobs, _require_name(jobs, asked))
    if len(jobs) == 1:
        return launcher.render(jobs[0])
    return {f"{job.name}-{name}": text for job in jobs for name, text in launcher.render(job).items()}


def _show(files: dict[str, str]) -> None:
    for name, text in files.items():
        print(f"# {name}\n{text}", end="")


def _doctor(asked: _Asked) -> dict[str, object]:
    launcher = asked.launcher()
    (job, *_) = dataclasses.replace(asked, behind=asked.behind or _NOTHING).jobs(launcher)
    return inspecting.report(launcher.doctor(job))


def _look(asked: _Asked) -> tuple[Launcher, Record, list[Job]]:
    """(Back end, record, jobs) of the job that is asked about, as it was described."""
    record = recorded(asked.records, asked.name)
    kept, behind = record.described()
    rest, words = sweep.split_sweep(kept)
    values = _flags()
    command.parse_flags(values, rest)
    again = _Asked(values, kept, behind, words)
    launcher = again.launcher()
    job = description.job_of(values, behind)
    points = [point.job for point in sweep.points(job, words)] if words else [job]
    return launcher, record, points


def _status(asked: _Asked) -> dict[str, object]:
    if not asked.name:
        return inspecting.all_jobs(asked.records, lambda name: _seen(asked, name))
    launcher, record, jobs = _look(asked)
    while (state := inspecting.state_of(launcher, record)).is_open and asked.values["wait"].value:
        time.sleep(inspecting.POLL_S)
    result = inspecting.show(state, record, jobs)
    if asked.values["wait"].value and state.code:
        raise SystemExit(state.code)
    return result


def _seen(asked: _Asked, name: str) -> inspecting.State:
    values = _flags()
    command.parse_flags(values, [f"--records={asked.records}", f"--name={name}"])
    launcher, record, _ = _look(_Asked(values, [], (), []))
    return inspecting.state_of(launcher, record)


def _logs(asked: _Asked) -> None:
    launcher, record, jobs = _look(asked)
    folders = [Record(asked.records / job.name) for job in jobs] if len(jobs) > 1 else [record]
    inspecting.show_logs(
        launcher, record, folders, asked.values["follow"].value, asked.values["process"].value
    )


def _stop(asked: _Asked) -> dict[str, object]:
    launcher, record, _ = _look(asked)
    return inspecting.stop(launcher, record)


_VERBS: dict[str, Callable[[_Asked], dict[str, object] | None]] = {
    "run": _run,
    "render": _render,
    "status": _status,
    "logs": _logs,
    "stop": _stop,
    "doctor": _doctor,
    "attend": _attend,
}


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


if __name__ == "__main__":
    command.run_command(main, extra="train")
