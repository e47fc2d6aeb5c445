"""A real Slurm cluster on this machine for tests: Debian's daemons with a configuration, a key and ports of their own.

The nodes are several slurmd on one machine. They are named by addresses of the loopback network, 127.0.0.2 and following: such a
name resolves everywhere, so that tasks meet at the first name of their node list, with no line in /etc/hosts. Nothing of the
system's own Slurm or MUNGE is touched, and no cgroups are asked for: tasks see the whole machine.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support import debian

_PACKAGES = {
    "munged": "munge",
    **dict.fromkeys(
        ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo"), "slurm-wlm"
    ),
}
PATIENCE_S = 60.0  # for daemons to start, which takes one or two seconds, and for commands to answer
Daemon = subprocess.Popen[bytes]
_EVERY_S = 0.2  # between two questions

# cred_expire: a requeued job waits for its credentials to expire, 120 s where nothing is said.
# config_overrides: nodes may claim more than the machine has. bf_, sched_: how often the scheduler looks.
_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/%n.pid
SlurmdLogFile={logs}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait={kill_wait_s}
MailProg={true}
"""
_PARTITION = (
    "PartitionName={name} Nodes=ALL PriorityTier={tier} GraceTime={grace_s} Default={default} State=UP\n"
)


def missing() -> str:
    """Which programs of Slurm and MUNGE are absent and could not be installed, and why; "" where all are there."""
    return debian.missing(_PACKAGES)


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Partition `low` is the default one; what waits in `high` takes nodes from it, and the jobs that lose them are queued again.
    """

    nodes: tuple[str, ...]
    logs: Path
    environment: Mapping[str, str]  # the whole of it, for commands that talk to this cluster

    def run(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        """What a command of Slurm prints; one that fails raises its stderr."""
        ended = subprocess.run(
            [program, *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        if ended.returncode:
            raise RuntimeError(
                f"{program} {' '.join(arguments)} ended with {ended.returncode}: {ended.stderr}"
            )
        return ended.stdout.strip()

    def submit(self, script: Path, *flags: str) -> str:
        """The id of a job that sbatch has taken."""
        return self.run("sbatch", "--parsable", *flags, str(script))

    def job(self, job_id: str) -> dict[str, str]:
        """What scontrol shows of a job, also of one that ended in the last five minutes: JobState, Restarts, ExitCode, Reason, …

        Of an array, name one of its tasks, such as 7_0.
        """
        shown = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def wait_until(self, holds: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Asks until it holds.

        Raises:
          TimeoutError: when that takes longer than `patience_s`; it says `what`, the queue, and the ends of the daemons' logs.
        """
        deadline = time.monotonic() + patience_s
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not within {patience_s:g} s: {what}\n{self._queue()}\n{log_tails(self.logs)}"
                )
            time.sleep(_EVERY_S)

    def _queue(self) -> str:
        try:
            return self.run("squeue")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return str(error)

    def wait_for_state(self, job_id: str, *states: str, patience_s: float = PATIENCE_S) -> dict[str, str]:
        """The job as soon as it is in one of the states, such as RUNNING or COMPLETED."""
        self.wait_until(
            lambda: self.job(job_id)["JobState"] in states,
            f"job {job_id} is {' or '.join(states)}",
            patience_s,
        )
        return self.job(job_id)


class _Times(NamedTuple):
    grace_s: int
    kill_wait_s: int


@contextlib.contextmanager
def cluster(
    folder: Path, nodes: int = 2, cpus: int = 2, grace_s: int = 5, kill_wait_s: int = 30
) -> Iterator[Cluster]:
    """A cluster whose nodes are idle, with its configuration and logs in `folder`; at the end all its processes are killed.

    Slurm looks only every 30 s whether a grace time or a time limit is over.

    Args:
      folder: an existing one.
      nodes: how many; each has `cpus`, whatever the machine has.
      grace_s: what the steps of a preempted job have between their SIGTERM and the end of the job; with 0 the job ends at once.
      kill_wait_s: what a job that ends (cancelled, requeued, out of time) has between SIGTERM and SIGKILL.

    Raises:
      RuntimeError: when a daemon ends before the nodes are idle, with the ends of the logs.
      TimeoutError: when the nodes are not idle within PATIENCE_S, likewise.
    """
    folder = folder.resolve()
    names = tuple(f"127.0.0.{number + 2}" for number in range(nodes))
    with ExitStack() as stack:
        # The paths of sockets must be short, and those of tests are not.
        state = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True))
        )
        configuration = _configure(folder, state, names, _Times(grace_s, kill_wait_s), cpus)
        made = Cluster(names, folder, _environment(configuration))
        daemons: list[Daemon] = []
        stack.callback(_kill_all, configuration, daemons)
        for daemon in _start(made, state):
            daemons.append(daemon)
        made.wait_until(lambda: _all_idle(made, daemons), "all nodes are idle")
        yield made


def log_tails(folder: Path, lines: int = 15) -> str:
    """The ends of the daemons' logs; of slurmctld and munged that is what they write to stderr."""
    logs = {log.stem: log for log in (*folder.glob("*.stderr"), *folder.glob("*.log"))}
    tails = []
    for name, log in sorted(logs.items()):
        tails += [f"--- {name}", *log.read_text(errors="replace").splitlines()[-lines:]]
    return "\n".join(tails)


def _configure(folder: Path, state: Path, names: tuple[str, ...], times: _Times, cpus: int) -> Path:
    """Makes slurm.conf, the key of MUNGE, and the folders of the daemons."""
    for place in ("controller", *names):
        (state / place).mkdir()
    key = state / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    port, *ports = _free_ports(1 + len(names))
    text = _CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0],
        port=port,
        user=pwd.getpwuid(os.geteuid()).pw_name,
        state=state,
        logs=folder,
        kill_wait_s=times.kill_wait_s,
        true=shutil.which("true"),
    )
    for name, own in zip(names, ports):
        text += f"NodeName={name} NodeAddr={name} Port={own} CPUs={cpus} State=UNKNOWN\n"
    text += _PARTITION.format(name="low", tier=1, grace_s=times.grace_s, default="YES")
    text += _PARTITION.format(name="high", tier=2, grace_s=0, default="NO")
    configuration = folder / "slurm.conf"
    configuration.write_text(text)
    return configuration


def _free_ports(count: int) -> list[int]:
    """All held until all are found, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


def _environment(configuration: Path) -> dict[str, str]:
    """This process's own, without what an outer Slurm job has left in it."""
    of_slurm = ("SLURM", "SBATCH_", "SRUN_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(of_slurm)}
    return own | {"SLURM_CONF": str(configuration), "PATH": debian.PATH}


def _start(made: Cluster, state: Path) -> Iterator[Daemon]:
    files = {
        "socket": "munge.socket",
        "key-file": "munge.key",
        "pid-file": "munge.pid",
        "seed-file": "munge.seed",
    }
    # --force: the folder of the socket is closed to other users.
    flags = ["--foreground", "--force", *(f"--{flag}={state / name}" for flag, name in files.items())]
    munged = _daemon(made, "munged", "munged", *flags)
    yield munged
    made.wait_until(
        lambda: _all_run(made, [munged]) and (state / "munge.socket").is_socket(), "munged has its socket"
    )
    yield _daemon(made, "slurmctld", "slurmctld", "-D")
    for node in made.nodes:
        yield _daemon(made, f"slurmd-{node}", "slurmd", "-D", "-N", node)


def _daemon(made: Cluster, name: str, *command: str) -> Daemon:
    """Started in a session of its own, so that a Ctrl-C leaves it to the end of the cluster."""
    with (made.logs / f"{name}.stderr").open("wb") as log:
        return subprocess.Popen(
            command,
            env=made.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _all_run(made: Cluster, daemons: list[Daemon]) -> bool:
    for daemon in daemons:
        if daemon.poll() is not None:
            raise RuntimeError(f"{daemon.args!r} ended with {daemon.returncode}\n{log_tails(made.logs)}")
    return True


def _all_idle(made: Cluster, daemons: list[Daemon]) -> bool:
    _all_run(made, daemons)
    try:
        states = made.run("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=low").splitlines()
    except RuntimeError:  # slurmctld does not listen yet
        return False
    return sorted(states) == sorted(f"{name} idle" for name in made.nodes)


def _kill_all(configuration: Path, daemons: list[Daemon]) -> None:
    """Kills the daemons, what they started and what talks to them: all whose SLURM_CONF names this file."""
    mark = f"SLURM_CONF={configuration}".encode()
    deadline = time.monotonic() + PATIENCE_S
    while (found := _processes_with(mark)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_EVERY_S / 4)
    for daemon in daemons:
        daemon.wait()


def _processes_with(mark: bytes) -> list[int]:
    """The other processes that were started with this variable, and still run."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return [process for process in found if process != os.getpid()]
