"""A Slurm cluster: one batch job whose script attends `srun` and starts it again by the exit-code table.

Preemption, a requeue and the end of the job's time reach the trainer as SIGTERM: it saves, and Slurm starts the script again,
which goes on from the checkpoint. Deaths start again within the allocation. A sweep is one array job. Workdir, records and the
environment lie on the cluster's shared file system.
"""

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from serving.command import ExitCode, UserError
from tools.launchers import programs
from tools.launchers.gang import Gang, Member
from tools.launchers.job import PYTHON, Job, table_code
from tools.launchers.launcher import Finding, Seen, refuse_fields, refuse_secrets_of
from tools.launchers.restarts import Ended
from tools.launchers.running import newest_step, say
from tools.launchers.secrets import known_here
from trainer.distributed import jobs

_PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}|UNLIMITED")
_LOGIN = "launch from a login node of the cluster"
_PORTS = 1000  # beyond the first, for jobs that share a host
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
_TASK = Path(__file__).with_name("task.py")


@dataclasses.dataclass(frozen=True)
class SlurmLauncher:
    """One task for each process."""

    partition: Annotated[str, "partition to ask for; empty: the cluster's own"] = ""
    account: Annotated[str, "account that pays"] = ""
    time_limit: Annotated[str, "longest time of the job, as Slurm writes it, such as 12:00:00"] = ""
    save_s: Annotated[int, "seconds before that time at which the trainer saves and the job is requeued"] = (
        120
    )
    tasks_per_node: Annotated[int, "processes on each node"] = 1
    parallel: Annotated[int, "jobs of a sweep that run at the same time; 0: as many as Slurm lets"] = 0
    sbatch: Annotated[
        tuple[str, ...], "one more option of sbatch, such as --gpus-per-task=4; may be given again"
    ] = ()

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "kubernetes", "env")
        refuse_fields(job, "slurm", "topology", "timeout_s")
        if self.time_limit and not _TIME.fullmatch(self.time_limit):
            raise UserError(
                f"--time_limit={self.time_limit}: Slurm writes 30 (minutes), 12:00:00 or 2-00:00:00"
            )
        for option in self.sbatch:
            if not option.startswith("-") or "\n" in option:
                raise UserError(f"--sbatch={option} is no option of sbatch, such as --gpus-per-task=4")
        return dataclasses.replace(job, processes=job.processes or 1)

    def render(self, job: Job) -> dict[str, str]:
        return self.render_all([job], job.name)

    def render_all(self, points: Sequence[Job], name: str) -> dict[str, str]:
        """The batch script of one job, or of the array that a sweep called `name` is."""
        array = points[0].name != name
        which = f"{name}-$SLURM_ARRAY_TASK_ID" if array else name
        attend = shlex.join((self._python(points[0]), "-m", "tools.launch", "attend"))
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in self._options(points[0], name, len(points) if array else 0)),
            "",
            f'exec {attend} "--records=$VITFORGE_RECORDS" "--name={which}"',
        ]
        submit = (
            "#!/bin/sh",
            "# To be run in the root of the code, on a file system that the nodes share.",
            'here=$(cd "$(dirname "$0")" && pwd)',
            'exec sbatch --parsable --export=ALL,VITFORGE_RECORDS="$here/records" "$here/job.sbatch"',
        )
        return {"job.sbatch": "\n".join(lines) + "\n", "submit.sh": "\n".join(submit) + "\n"}

    def doctor(self, job: Job) -> list[Finding]:
        if missing := programs.missing(*_PROGRAMS, remedy=_LOGIN):
            return missing
        asked = [f"--partition={self.partition}"] if self.partition else []
        answered = programs.run("sinfo", "--noheader", "--format=%P %a %D %T", *asked)
        what = f"partition {self.partition}" if self.partition else "Slurm"
        if answered.returncode or not answered.stdout.strip():
            said = (
                programs.why_failed(answered) if answered.returncode else "the cluster has none of this name"
            )
            return [Finding(what, said, _LOGIN if answered.returncode else "give another --partition")]
        return [Finding(f"{what}: {'; '.join(answered.stdout.strip().splitlines())}")]

    def submit(self, points: Sequence[Job], name: str, rendered: Path) -> str:
        """Hands the batch script to Slurm; the job's number."""
        programs.require_there("sbatch", remedy=_LOGIN)
        record = rendered.parent
        output = record / ("slurm-%A_%a.log" if points[0].name != name else "slurm-%j.log")
        given = (f"--export=ALL,VITFORGE_RECORDS={record.parent}", f"--output={output}")
        done = programs.run("sbatch", "--parsable", *given, str(rendered / "job.sbatch"))
        if done.returncode:
            raise UserError(f"Slurm refused the job: {programs.why_failed(done)}")
        return done.stdout.strip().partition(";")[0]

    def point(self, handle: str, number: int, name: str) -> str:
        return f"{handle}_{number}"

    def look(self, handle: str) -> Seen:
        done = programs.run("squeue", "--noheader", f"--jobs={handle}", "--format=%T %r")
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UserError(f"Slurm does not answer: {programs.why_failed(done)}")
        lines = done.stdout.strip().splitlines()
        if not lines:
            return Seen("ended", "not in the queue any more")
        running = any(line.split()[0] in _RUNNING for line in lines)
        return Seen(
            "running" if running else "waiting",
            ", ".join(sorted({line.removesuffix(" None") for line in lines})),
        )

    def logs(self, handle: str, follow: bool, since_s: float) -> None:
        """Output lies in the record."""

    def stop(self, handle: str) -> None:
        programs.require("scancel", handle)

    def prepare(self, job: Job) -> None:
        """Slurm has prepared everything when the script begins."""

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """In the batch script: runs the tasks of the job, once; what was preempted is given back to Slurm's queue."""
        assert logs
        output = (f"--output={logs}/process_%t.log", "--open-mode=append")
        words = (self._python(job), *job.command[1:]) if job.command[0] in PYTHON else job.command
        task = (self._python(job), str(_TASK), str(logs), *words)
        srun = Member(("srun", "--kill-on-bad-exit=1", *output, *task), self._environment(job), name="srun")
        ended = _as_first(Gang(job, [srun]).run(), logs, job.count)
        if ended.code != ExitCode.PREEMPTED:
            return ended
        # Who ended this script, too, has decided what becomes of the job: a requeue of its own, or a person's scancel.
        if not ended.final or _out_of_time():
            ended = dataclasses.replace(ended, reason=_requeue() or ended.reason)
        return dataclasses.replace(ended, final=True)

    def reached(self, job: Job) -> int | None:
        return newest_step(job)

    def release(self, job: Job) -> None:
        """The allocation ends with the script."""

    def _environment(self, job: Job) -> dict[str, str]:
        port = job.port or jobs.PORT + int(os.environ["SLURM_JOB_ID"]) % _PORTS
        devices = {"JAX_NUM_CPU_DEVICES": str(job.devices_per_process)} if job.devices_per_process else {}
        own = {"PYTHONUNBUFFERED": "1", **devices, **job.env, jobs.OWN_PORT: str(port)}
        return own | known_here(job.secrets)

    def _options(self, job: Job, name: str, points: int) -> list[str]:
        at_once = f"%{self.parallel}" if self.parallel else ""
        options = {
            "job-name": name,
            "ntasks": str(job.count),
            "ntasks-per-node": str(self.tasks_per_node),
            "partition": self.partition,
            "account": self.account,
            "time": self.time_limit,
            "signal": f"TERM@{self.save_s}" if self.time_limit else "",
            "array": f"0-{points - 1}{at_once}" if points else "",
            "open-mode": "append",
        }
        given = [f"--{key}={shlex.quote(value)}" for key, value in options.items() if value]
        return [*given, "--requeue", *self.sbatch]

    def _python(self, job: Job) -> str:
        return f"{job.venv}/bin/python" if job.venv else sys.executable


def _as_first(ended: Ended, logs: Path, tasks: int) -> Ended:
    """How the step ended: as the task that failed first, when each has noted its end.

    One that was killed with its note unwritten leaves srun's code, the highest of all, which is then that of the death.
    """
    notes = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in logs.glob("ended_*.json")]
    failed = sorted((note["at_s"], file.stem, note["code"]) for file, note in notes if note["code"])
    if not failed or len(notes) < tasks:
        return ended
    _, name, code = failed[0]
    reason = f"process {name.removeprefix('ended_')} of {tasks} failed first, with exit code {code}"
    say(reason)
    return dataclasses.replace(ended, code=table_code(code), reason=reason)


def _this_job() -> str:
    """The job that this script is, one of an array by its number in it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _out_of_time() -> bool:
    """Whether Slurm ends this job because its time is over."""
    return "Reason=TimeLimit" in programs.run("scontrol", "show", "job", _this_job()).stdout


def _requeue() -> str:
    """Gives this job back to the queue; why that was refused, "" when it was not or Slurm has done so already."""
    done = programs.run("scontrol", "requeue", _this_job())
    if not done.returncode or "pending execution" in done.stderr:
        return ""
    problem = f"saved, but Slurm does not requeue the job: {programs.why_failed(done)}"
    say(problem)
    return problem
