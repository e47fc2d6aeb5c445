"""Hosts by name over ssh: for a lab, and for TPU VMs that are there already.

The checkout is shipped by rsync, without what git ignores; hosts are asked before anything starts. When a host is cut off, the
others are ended and the gang starts again; what was left on it ends by itself (`attended`).
"""

import dataclasses
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from serving.command import ExitCode, UserError
from tools.launchers import remote
from tools.launchers.gang import Gang
from tools.launchers.job import Job
from tools.launchers.launcher import Finding, refuse_secrets_of
from tools.launchers.restarts import Ended
from trainer.distributed import jobs

_OPTIONS = (
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)


@dataclasses.dataclass(frozen=True)
class SshLauncher:
    """One process on each host."""

    hosts: Annotated[str, "names for ssh, between commas; or @FILE with one on each line"] = ""
    ssh: Annotated[str, "the ssh command with its options, such as 'ssh -i KEY'"] = "ssh"
    folder: Annotated[str, "of the code on the hosts, from the home folder; empty: vitforge/NAME"] = ""
    coordinator: Annotated[str, "address of the first host as the others reach it; empty: its name"] = ""
    ship: Annotated[bool, "copy this checkout to the hosts"] = True
    wait_s: Annotated[float, "for capacity, or a host that was lost, at most"] = 3600.0

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "kubernetes")
        hosts = self._names()
        if len(set(hosts)) != len(hosts):
            raise UserError(f"--hosts={self.hosts} names a host twice; each runs one process")
        if job.processes not in (None, len(hosts)):
            raise UserError(
                f"--processes={job.processes}, but --hosts names {len(hosts)}; each runs one process"
            )
        return dataclasses.replace(job, processes=len(hosts))

    def render(self, job: Job) -> dict[str, str]:
        reach = self._reach(job)
        files = remote.rendered(job, reach, self._coordinator(job))
        if self.ship:
            files["ship.sh"] = "".join(f"{shlex.join(reach.copy(index))}\n" for index in range(job.count))
        return files

    def doctor(self, job: Job) -> list[Finding]:
        if missing := self._missing():
            return [Finding(f"program {name}", "is not on this machine", "install it") for name in missing]
        reach = self._reach(job)
        found = remote.look_at_versions(job, reach)
        if any(one.problem for one in found):
            return found
        port = remote.look_at_port(job, reach, self._coordinator(job))
        return found + port + remote.look_at_workdir(job, reach)

    def prepare(self, job: Job) -> None:
        reach = self._reach(job)
        if missing := self._missing():
            raise UserError(f"{' and '.join(missing)} not on this machine; install it")
        remote.require_answers(job, reach)
        if self.ship:
            remote.require_checkout()
            # Home folders may be shared: the first copy is whole before the others look.
            self._copy(reach, 0)
            remote.on_all(job.count - 1, lambda index: self._copy(reach, index + 1))
        remote.require_shared_workdir(job, reach)

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """Runs the processes, once; a host that was lost is waited for."""
        if silent := remote.wait_for_answers(job, self._reach(job), self.wait_s):
            return Ended(ExitCode.LOST_PEER, True, silent)
        return Gang(job, remote.members(job, self._reach(job), self._coordinator(job)), logs).run()

    def release(self, name: str) -> None:
        """There is nothing to give back."""

    def _names(self) -> list[str]:
        if not self.hosts:
            raise UserError("--backend=ssh needs --hosts=HOST,HOST… or --hosts=@FILE")
        text = self.hosts
        if text.startswith("@"):
            try:
                text = Path(text[1:]).read_text(encoding="utf-8").replace("\n", ",")
            except OSError as error:
                raise UserError(
                    f"--hosts={self.hosts}: {error.strerror}; give a file with one host a line"
                ) from error
        names = [name.strip() for name in text.split(",") if name.strip()]
        wrong = next(
            (name for name in names if name.startswith("-") or set(name) & set(" \t'\"$`;&|<>\\")), None
        )
        if wrong or not names:
            raise UserError(
                f"--hosts: {wrong!r} is no host's name" if wrong else f"--hosts={self.hosts} names no host"
            )
        return names

    def _ssh(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.ssh))

    def _missing(self) -> list[str]:
        """Programs that are not on this machine."""
        return [
            name for name in (self._ssh()[0], *(["rsync"] if self.ship else [])) if not shutil.which(name)
        ]

    def _reach(self, job: Job) -> "_Ssh":
        return _Ssh(
            (*self._ssh(), *_OPTIONS), tuple(self._names()), self.folder or f"vitforge/{job.name or 'job'}"
        )

    def _coordinator(self, job: Job) -> str:
        return f"{self.coordinator or self._names()[0].rpartition('@')[2]}:{job.port or jobs.PORT}"

    def _copy(self, reach: "_Ssh", index: int) -> None:
        done = subprocess.run(reach.copy(index), cwd=remote.CODE, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["rsync said nothing"])[-1]
            raise UserError(f"host {reach.host(index)}: the code was not copied to {reach.folder} ({last})")


@dataclasses.dataclass(frozen=True)
class _Ssh:
    """`ssh` and `rsync` to the hosts by number."""

    command: tuple[str, ...]
    hosts: tuple[str, ...]
    folder: str

    def host(self, index: int) -> str:
        return self.hosts[index]

    def shell(self, index: int, words: Sequence[str]) -> tuple[str, ...]:
        return (*self.command, self.hosts[index], shlex.join(words))

    def copy(self, index: int) -> tuple[str, ...]:
        """The command, run in the checkout, that makes the folder of a host like it."""
        options = ("-a", "--delete", "--mkpath", "--filter=:- .gitignore", "--exclude=/.git")
        return (
            "rsync",
            *options,
            "-e",
            shlex.join(self.command),
            "./",
            f"{self.hosts[index]}:{self.folder}/",
        )
