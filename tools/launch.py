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

from serving import command
from serving.command import ExitCode, UserError
from tools.launchers import description, inspecting, planned
from tools.launchers.asked import Asked, described, typed
from tools.launchers.job import Job
from tools.launchers.launcher import Attending, Launcher, Submitting
from tools.launchers.output import show_output
from tools.launchers.records import Record, all_records, job_text, recorded, write_files
from tools.launchers.restarts import Ended
from tools.launchers.running import say, to_the_end

_ATTEND_S = 60.0  # for the record of a job to be free, which its submission, or an allocation before, held
_TRAINING = ("python", "-m", "trainer.main", "--help")  # what the doctor looks for where no command is given


def main(argv: list[str]) -> dict[str, object] | None:
    """Does what the verb in `argv` says; leaves with the exit code of a job that failed."""
    own, behind = description.split_command(argv)
    verb = own.pop(0) if own and not own[0].startswith("-") else ""
    asked, extra = typed(own, behind)
    if verb not in _VERBS:
        problem = f"no such verb: {verb!r}" if verb else "say what to do"
        raise UserError(
            f"{problem}; there are {', '.join(name for name in _VERBS if name != 'attend')} (see --help)"
        )
    if extra:
        raise description.misplaced(extra[0])
    return _VERBS[verb](asked)


def _run(asked: Asked) -> dict[str, object] | None:
    launcher = asked.launcher()
    jobs = asked.jobs(launcher)
    for job in jobs if asked.values["plan"].value else ():
        planned.require_plan(job)
    if asked.values["dry_run"].value:
        _show(_rendered(launcher, jobs, asked))
        return None
    if isinstance(launcher, Submitting):
        return _submit(launcher, jobs, asked)
    assert isinstance(launcher, Attending)
    code = _run_sweep(launcher, jobs, asked) if asked.sweep else _run_job(launcher, jobs[0], asked)
    if code:
        # The launcher has said why; the code may be a runtime's death, which no error of ours stands for.
        raise SystemExit(code)
    return None


def _run_job(launcher: Attending, job: Job, asked: Asked) -> int:
    """Exit code of one job; on this machine it has a record when it was given a name."""
    if asked.values["backend"].value == "local" and not asked.name:
        return to_the_end(launcher, job, None).code
    record = Record(asked.records / asked.require_name())
    _require_free(record, asked)
    return _run_recorded(launcher, job, record, asked).code


def _run_sweep(launcher: Attending, jobs: Sequence[Job], asked: Asked) -> int:
    """One job after the other, but those that are done; the code of the first that failed."""
    parent, failed = Record(asked.records / asked.require_name()), 0
    _require_free(parent, asked)
    _require_same_sweep(parent, jobs, asked)
    with parent.held():
        _keep(parent, asked, asked.describing(), asked.behind)
        parent.note(state="running", jobs=len(jobs))
        for number, job in enumerate(jobs, start=1):
            record = Record(asked.records / job.name)
            if _is_done(record, job):
                say(f"{job.name} is done")
                continue
            say(f"job {number} of {len(jobs)}: {job.name}")
            ended = _run_recorded(launcher, job, record, asked)
            failed = failed or ended.code
            if ended.final:
                break
        parent.note(state="ended", code=failed)
        rows = inspecting.show_sweep(launcher, parent, jobs)
        print(command.json_text({"name": parent.name, "jobs": rows}), flush=True)
    return failed


def _run_recorded(launcher: Attending, job: Job, record: Record, asked: Asked) -> Ended:
    with record.held():
        _keep(
            record,
            asked,
            asked.describing_point(job),
            job.command,
            asked.require_name() if asked.sweep else "",
        )
        record.render(launcher.render(job))
        return to_the_end(launcher, job, record)


def _submit(launcher: Submitting, jobs: Sequence[Job], asked: Asked) -> dict[str, object]:
    name = asked.require_name()
    parent = Record(asked.records / name)
    _require_free(parent, asked)
    _require_same_sweep(parent, jobs, asked)
    points = [Record(asked.records / job.name) for job in jobs] if asked.sweep else []
    with parent.held():
        _keep(parent, asked, asked.describing(), asked.behind)
        for point, job in zip(points, jobs):
            _keep(point, asked, asked.describing_point(job), job.command, name)
        rendered = parent.render(launcher.render_all(jobs, name))
    # Not held any more: the scheduler may start the job at once, whose script holds the record then.
    try:
        handle = parent.handle = launcher.submit(jobs, name, rendered)
    except UserError as error:
        parent.note(state="ended", code=error.exit_code, reason=str(error))
        raise
    for number, point in enumerate(points):
        point.handle = launcher.point(handle, number, point.name)
    say(f"handed over as {handle}; see it with: status --name={name}, logs --follow --name={name}")
    return {"name": name, "backend": asked.values["backend"].value, "handle": handle, "jobs": len(jobs)}


def _require_free(record: Record, asked: Asked) -> None:
    """Refuses a name under which a job is that may still run, whatever its back end.

    Raises:
      UserError: naming it.
    """
    if not record.exists():
        return
    seen = _Seen.of(asked.records, record.name)
    if isinstance(seen.launcher, Submitting) and record.handle and seen.state().is_open:
        raise UserError(f"a job {record.name} is there already; stop it, or give this one another --name")


def _require_same_sweep(parent: Record, jobs: Sequence[Job], asked: Asked) -> None:
    """Refuses another sweep of a name whose results would leave its table.

    Raises:
      UserError: when a job of the one that is recorded has ended well, and is none of these.
    """
    commands = {job.command for job in jobs} if asked.sweep else set()
    for record in all_records(asked.records):
        state = record.state()
        done = state.get("sweep") == parent.name and state.get("code") == 0
        if done and record.described()[1] not in commands:
            raise UserError(
                f"results of another sweep are recorded as {parent.name}, such as {record.described()[1][-1]}; give this one "
                f"another --name, or remove {parent.folder} and {parent.folder}-*"
            )


def _keep(record: Record, asked: Asked, own: Sequence[str], behind: tuple[str, ...], sweep: str = "") -> None:
    record.folder.mkdir(parents=True, exist_ok=True)
    record.describe(own, behind)
    record.begin(asked.values["backend"].value, sweep)


def _is_done(record: Record, job: Job) -> bool:
    """Whether a job of a sweep, as it is asked for, has ended well before."""
    return record.exists() and record.state().get("code") == 0 and record.described()[1] == job.command


def _attend(asked: Asked) -> None:
    """What a batch script runs: the job of a record, where its scheduler has put it."""
    record = recorded(asked.records, asked.name)
    again = described(record)
    launcher = again.launcher()
    assert isinstance(launcher, Attending)
    with record.held(patience_s=_ATTEND_S):
        ended = to_the_end(launcher, again.jobs(launcher)[0], record)
    if ended.code:
        raise SystemExit(ended.code)


def _render(asked: Asked) -> dict[str, object] | None:
    launcher = asked.launcher()
    jobs = asked.jobs(launcher)
    files = _rendered(launcher, jobs, asked)
    if not asked.values["output"].value:
        _show(files)
        return None
    folder = write_files(Path(asked.values["output"].value), files)
    return {"output": str(folder), "files": sorted(files)}


def _rendered(launcher: Launcher, jobs: Sequence[Job], asked: Asked) -> dict[str, str]:
    if isinstance(launcher, Submitting):
        return {**launcher.render_all(jobs, asked.require_name()), **_records(jobs, asked)}
    if not asked.sweep:
        return launcher.render(jobs[0])
    return {f"{job.name}-{name}": text for job in jobs for name, text in launcher.render(job).items()}


def _records(jobs: Sequence[Job], asked: Asked) -> dict[str, str]:
    """What a batch script finds its job by: the records that `run` would keep."""
    if asked.values["backend"].value != "slurm":
        return {}
    kept = {job.name: job_text(asked.describing_point(job), job.command) for job in jobs}
    return {f"records/{name}/job.json": text for name, text in kept.items()}


def _show(files: dict[str, str]) -> None:
    for name, text in files.items():
        print(f"# {name}\n{text}", end="")


def _doctor(asked: Asked) -> dict[str, object]:
    launcher = asked.launcher()
    (job, *_) = dataclasses.replace(asked, behind=asked.behind or _TRAINING).jobs(launcher)
    return inspecting.report(launcher.doctor(job))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A recorded job, or sweep, with its back end and its jobs, as it was asked for."""

    launcher: Launcher
    record: Record
    jobs: list[Job]
    is_sweep: bool

    @classmethod
    def of(cls, records: Path, name: str) -> "_Seen":
        """The record called `name`.

        Raises:
          UserError: when there is none.
        """
        record = recorded(records, name)
        asked = described(record)
        launcher = asked.launcher()
        return cls(launcher, record, asked.placed(launcher), bool(asked.sweep))

    def state(self) -> inspecting.State:
        if self.is_sweep:
            return inspecting.state_of_sweep(self.launcher, self.record, self.jobs)
        return inspecting.state_of(self.launcher, self.record)


def _status(asked: Asked) -> dict[str, object]:
    if not asked.name:
        return inspecting.all_jobs(asked.records, lambda name: _Seen.of(asked.records, name).state())
    seen = _Seen.of(asked.records, asked.name)
    while (state := seen.state()).is_open and asked.values["wait"].value:
        time.sleep(inspecting.POLL_S)
    result = inspecting.show(state, seen.record, seen.jobs[0])
    if seen.is_sweep:
        result["jobs"] = inspecting.show_sweep(seen.launcher, seen.record, seen.jobs)
    if asked.values["wait"].value and (state.code or state.state == "lost"):
        print(command.json_text(result), flush=True)
        raise SystemExit(state.code or ExitCode.BUG)
    return result


def _logs(asked: Asked) -> None:
    seen = _Seen.of(asked.records, asked.name)
    points = [Record(asked.records / job.name) for job in seen.jobs] if seen.is_sweep else []
    follow, process = asked.values["follow"].value, asked.values["process"].value
    folders, handle = [seen.record, *points], seen.record.handle
    show_output(seen.launcher, folders, handle, follow, process, lambda: seen.state().is_open)


def _stop(asked: Asked) -> dict[str, object]:
    seen = _Seen.of(asked.records, asked.name)
    return inspecting.stop(seen.launcher, seen.record, seen.jobs, seen.state)


_VERBS: dict[str, Callable[[Asked], dict[str, object] | None]] = {
    "run": _run,
    "render": _render,
    "status": _status,
    "logs": _logs,
    "stop": _stop,
    "doctor": _doctor,
    "attend": _attend,
}


if __name__ == "__main__":
    command.run_command(main, extra="train")
