"""A Slurm cluster: one batch job whose script attends `srun` and starts it again by the exit-code table.

Preemption, a requeue and the end of the job's time reach the trainer as SIGTERM: it saves, and Slurm starts the script again,
which goes on from the checkpoint. Deaths start again within the allocation. A sweep is one array job. Workdir, records and the
environment lie on the cluster's shared file system.
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from serving.command import ExitCode, UserError
from tools.launchers.gang import Gang, Member
from tools.launchers.job import PYTHON, Job
from tools.launchers.launcher import Finding, Seen, refuse_secrets_of
from tools.launchers.restarts import Ended
from tools.launchers.secrets import known_here
from trainer.distributed import jobs

_PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_PORTS = 1000  # beyond the first, for jobs that share a host
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")


@dataclasses.dataclass(frozen=True)
class SlurmLauncher:
    """One task for each process."""

    partition: Annotated[str, "to ask for; empty: the cluster's own"] = ""
    account: Annotated[str, "that pays"] = ""
    time_limit: Annotated[str, "of the job, as Slurm writes it, such as 12:00:00"] = ""
    save_s: Annotated[
        int, "before the end of the time, that the trainer is asked to save and is requeued"
    ] = 120
    tasks_per_node: Annotated[int, "processes on each node"] = 1
    parallel: Annotated[int, "jobs of a sweep that run at the same time; 0: as many as Slurm lets"] = 0
    sbatch: Annotated[
        tuple[str, ...], "one more option of sbatch, such as --gpus-per-task=4; may be given again"
    ] = ()

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "kubernetes", "env")
        if job.timeout_s:
            raise UserError("--timeout_s is not for Slurm; give --time_limit")
        for option in self.sbatch:
            if not option.startswith("-") or "\n" in option:
                raise UserError(f"--sbatch={option} is no option of sbatch, such as --gpus-per-task=4")
        return dataclasses.replace(job, processes=job.processes or 1)

    def render(self, job: Job) -> dict[str, str]:
        return self.render_all([job], job.name)

    def render_all(self, points: Sequence[Job], name: str) -> dict[str, str]:
        """The batch script of one job, or of the array that a sweep is."""
        array = len(points) > 1
        which = f"{name}-$SLURM_ARRAY_TASK_ID" if array else name
        attend = shlex.join((self._python(points[0]), "-m", "tools.launch", "attend"))
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in self._options(points[0], name, len(points))),
            "",
            f'exec {attend} "--records=$VITFORGE_RECORDS" "--name={which}"',
        ]
        return {
            "job.sbatch": "\n".join(lines) + "\n",
            "submit.sh": 'sbatch --parsable --export=ALL,VITFORGE_RECORDS="$PWD" job.sbatch\n',
        }

    def doctor(self, job: Job) -> list[Finding]:
        missing = [name for name in _PROGRAMS if not shutil.which(name)]
        if missing:
            remedy = "launch from a login node of the cluster"
            return [Finding(f"program {name}", "is not on this machine", remedy) for name in missing]
        answered = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
        if answered.returncode:
            return [
                Finding(
                    "Slurm",
                    _last(answered.stderr),
                    "see that slurmctld runs, with the cluster's administrator",
                )
            ]
        return [Finding("Slurm answers")]

    def submit(self, points: Sequence[Job], name: str, rendered: Path) -> str:
        """Hands the batch script to Slurm; the job's number."""
        if not shutil.which("sbatch"):
            raise UserError("there is no sbatch here; launch from a login node of the cluster")
        records = rendered.parents[1]
        output = rendered.parent / ("slurm-%A_%a.log" if len(points) > 1 else "slurm-%j.log")
        given = (f"--export=ALL,VITFORGE_RECORDS={records}", f"--output={output}")
        command = ["sbatch", "--parsable", *given, str(rendered / "job.sbatch")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"Slurm refused the job: {_last(done.stderr)}")
        return done.stdout.strip().partition(";")[0]

    def look(self, handle: str) -> Seen:
        command = ["squeue", "--noheader", f"--jobs={handle}", "--format=%T %r"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UserError(f"Slurm does not answer: {_last(done.stderr)}")
        lines = done.stdout.split("\n")[:-1]
        if not lines:
            return Seen("ended", "not in the queue any more")
        words = ", ".join(sorted(set(lines)))
        return Seen("running" if any(line.split()[0] in _RUNNING for line in lines) else "waiting", words)

    def logs(self, handle: str, follow: bool) -> None:
        """Output lies in the record."""

    def stop(self, handle: str) -> None:
        done = subprocess.run(["scancel", handle], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"Slurm did not cancel job {handle}: {_last(done.stderr)}")

    def prepare(self, job: Job) -> None:
        """Slurm has prepared everything when the script begins."""

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """In the batch script: runs the tasks of the job, once; what was preempted is given back to Slurm's queue."""
        output = [f"--output={logs}/process_%t.log", "--open-mode=append"] if logs else []
        python = job.command[0] in PYTHON
        words = (self._python(job), *job.command[1:]) if python else job.command
        srun = Member(("srun", "--kill-on-bad-exit=1", *output, *words), self._environment(job), name="srun")
        ended = Gang(job, [srun]).run()
        if ended.code != ExitCode.PREEMPTED:
            return ended
        # Who ended this script, too, has decided what becomes of the job: a requeue of its own, or a person's scancel.
        if not ended.final or _out_of_time():
            _requeue()
        return dataclasses.replace(ended, final=True)

    def release(self, name: str) -> None:
        """There is nothing to give back."""

    def _environment(self, job: Job) -> dict[str, str]:
        port = job.port or jobs.PORT + int(os.environ["SLURM_JOB_ID"]) % _PORTS
        devices = {"JAX_NUM_CPU_DEVICES": str(job.devices_per_process)} if job.devices_per_process else {}
        return {
            "PYTHONUNBUFFERED": "1",
            **devices,
            **job.env,
            jobs.OWN_PORT: str(port),
            **known_here(job.secrets),
        }

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
            "array": f"0-{points - 1}{at_once}" if points > 1 else "",
            "open-mode": "append",
        }
        given = [f"--{key}={shlex.quote(value)}" for key, value in options.items() if value]
        return [*given, "--requeue", *self.sbatch]

    def _python(self, job: Job) -> str:
        return f"{job.venv}/bin/python" if job.venv else sys.executable


def _this_job() -> str:
    """The job that this script is, one of an array by its number in it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _out_of_time() -> bool:
    """Whether Slurm ends this job because its time is over."""
    command = ["scontrol", "show", "job", _this_job()]
    return "Reason=TimeLimit" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _requeue() -> None:
    """Gives this job back to the queue; Slurm, when it was that who preempted, may have done so already."""
    subprocess.run(["scontrol", "requeue", _this_job()], capture_output=True, check=False)


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
