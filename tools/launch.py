"""Runs one command as the several processes of a distributed job, and answers for them with one exit code.

    python -m tools.launch run --backend=local --processes=2 --devices_per_process=4 [--logs=DIR] \\
        -- python -m trainer.main --config=configs/digits.py:teacher --workdir=runs/teacher

Everything behind -- reaches the processes as typed. Their output is shown on stderr, headed by the number of the process, with the
progress of process 0 alone; its result is the last line of stdout. The first process that fails decides the exit code, and the
others are ended. SIGTERM and Ctrl-C ask all of them to save and end, for --grace_s at most; after Ctrl-C the exit code is 130.

A job with a --workdir starts again, from its newest checkpoint, when it was preempted (42), stalled (43), or a process was lost
or died (44, 134, 137, 139, 143): --max_restarts times, preemptions not counted, until three starts in a row got no further. Every
other code ends it.

Verbs: run. Planned: render, status, logs, stop, doctor.
Back ends: local (processes on this machine). Planned: ssh, slurm, jobset, tpu_vm.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError
from tools import launchers
from tools.launchers.job import Job
from tools.launchers.restarts import Restarts, supervised
from trainer.workdir import steps

_RESTARTS = 10
_PLANNED_VERBS = ("render", "status", "logs", "stop", "doctor")


def main(argv: list[str]) -> None:
    """Runs the job that `argv` describes and leaves with its exit code."""
    own, behind = _split(argv)
    verb = own.pop(0) if own and not own[0].startswith("-") else ""
    _check_dashes(own)
    values = _flags()
    extra = command.parse_flags(values, own)
    _check_verb(verb)
    if extra:
        raise _misplaced(extra[0])
    launcher = launchers.launcher_named(values["backend"].value)
    job = Job(
        command=behind,
        processes=values["processes"].value,
        devices_per_process=values["devices_per_process"].value,
        env=_environment(values["env"].value),
        logs_dir=Path(values["logs"].value) if values["logs"].value else None,
        timeout_s=values["timeout_s"].value,
        grace_s=values["grace_s"].value,
    )
    if values["dry_run"].value:
        print("\n".join(launcher.describe(job)))
        return
    workdir = job.option("workdir")
    most = values["max_restarts"].value
    code = supervised(
        lambda: launcher.run(job),
        Restarts(most if most is not None else _RESTARTS if workdir else 0),
        lambda: next(iter(steps(Path(workdir))[::-1]), None) if workdir else None,
        lambda text: print(f"[launch] {text}", file=sys.stderr, flush=True),
        time.sleep,
    )
    if code:
        # The launcher has said why; the code may be a runtime's death, which no error of ours stands for.
        raise SystemExit(code)


def _split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in argv:
        return list(argv), ()
    at = list(argv).index("--")
    return list(argv[:at]), tuple(argv[at + 1 :])


def _check_dashes(own: Sequence[str]) -> None:
    """Refuses a command among the launcher's own arguments, before its flags are taken for those of the launcher."""
    for argument in own:
        if not argument.startswith("-") and shutil.which(argument):
            raise _misplaced(argument)


def _misplaced(argument: str) -> UserError:
    return UserError(f"unexpected argument {argument!r}: put -- before the command to run (see --help)")


def _check_verb(verb: str) -> None:
    if verb == "run":
        return
    if verb in _PLANNED_VERBS:
        raise UserError(f"the verb {verb!r} is planned and not there yet; there is: run")
    problem = f"no such verb: {verb!r}" if verb else "say what to do"
    raise UserError(f"{problem}; there is: run ({', '.join(_PLANNED_VERBS)} are planned)")


def _environment(assignments: Sequence[str]) -> dict[str, str]:
    for assignment in assignments:
        if not assignment.partition("=")[0].isidentifier() or "=" not in assignment:
            raise UserError(f"--env={assignment}: NAME=VALUE is expected")
    return dict(assignment.split("=", 1) for assignment in assignments)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("backend", "local", "Where the processes run.", flag_values=values)
    flags.DEFINE_integer("processes", 1, "How many processes.", flag_values=values)
    flags.DEFINE_integer("devices_per_process", 1, "Virtual CPU devices of each process.", flag_values=values)
    flags.DEFINE_multi_string(
        "env", [], "NAME=VALUE for every process; may be given again.", flag_values=values
    )
    flags.DEFINE_string("logs", None, "Folder for one file of output per process.", flag_values=values)
    flags.DEFINE_float(
        "timeout_s", None, "Stop the job (exit code 43) after so many seconds.", flag_values=values
    )
    flags.DEFINE_float(
        "grace_s", 30.0, "Seconds between asking a process to end and killing it.", flag_values=values
    )
    flags.DEFINE_integer(
        "max_restarts",
        None,
        f"How often a job that died may start again; {_RESTARTS} with a --workdir to go on from, else 0.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_bool("dry_run", False, "Print what would run, and start nothing.", flag_values=values)
    return values


if __name__ == "__main__":
    command.run_command(main)
