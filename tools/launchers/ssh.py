"""Hosts by name over ssh: for a lab, and for TPU VMs that are there already.

The files of the checkout are shipped by rsync, and nothing is deleted on a host; hosts are asked before anything starts. When one
is cut off, the others are ended and the gang starts again when it is back; what was left on it is ended (`attended`).
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from serving.command import ExitCode, UserError
from tools.launchers import checkout, programs, remote
from tools.launchers.gang import Gang
from tools.launchers.job import Job, on_topology
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
class SshLauncher(remote.CodeOnHosts):
    """One process on each host."""

    hosts: Annotated[str, "hosts by their names for ssh, between commas; or @FILE with one on each line"] = ""
    ssh: Annotated[str, "ssh command with its options, such as 'ssh -i KEY'"] = "ssh"
    coordinator: Annotated[str, "address of the first host as the others reach it; empty: its name"] = ""

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "kubernetes")
        self._ssh()
        hosts = self._names()
        if len(set(hosts)) != len(hosts):
            raise UserError(f"--hosts={self.hosts} names a host twice; each runs one process")
        job = on_topology(job) if job.topology else job
        if job.processes not in (None, len(hosts)):
            raise UserError(
                f"{job.processes} processes are asked for, and --hosts names {len(hosts)}; each runs one"
            )
        return dataclasses.replace(job, processes=len(hosts))

    def render(self, job: Job) -> dict[str, str]:
        hosts = self._hosts(job)
        files = hosts.rendered(self._coordinator(job))
        ship = [
            f"{shlex.join(checkout.LISTED)} | {shlex.join(hosts.reach.copy(index))}"
            for index in range(job.count)
        ]
        setup = [shlex.join(hosts.reach.line(index, self.set_up_line(job))) for index in range(job.count)]
        lines = [*(ship if self.ship else []), *(setup if self.setup else [])]
        return {**files, **({"ship.sh": "".join(f"{line}\n" for line in lines)} if lines else {})}

    def doctor(self, job: Job) -> list[Finding]:
        if missing := programs.missing(*self._programs()):
            return missing
        hosts = self._hosts(job)
        found = hosts.look_at_reach()
        if not any(one.problem for one in found):
            found = hosts.look_at_versions()
        if any(one.problem for one in found):
            return found
        return found + hosts.look_at_port(self._coordinator(job)) + hosts.look_at_workdir()

    def prepare(self, job: Job) -> None:
        programs.require_there(*self._programs())
        hosts = self._hosts(job)
        hosts.require_reached()
        shipped_first = self.setup or (job.venv and not job.venv.startswith("/"))
        if not shipped_first:
            hosts.require_versions()
        self._fill(job, hosts)
        if shipped_first:
            hosts.require_versions()
        hosts.require_shared_workdir()

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """Runs the processes, once; a host that was lost is waited for."""
        hosts = self._hosts(job)
        if silent := hosts.wait_until_reached(self.wait_s):
            return Ended(ExitCode.LOST_PEER, True, silent)
        return Gang(job, hosts.members(self._coordinator(job)), logs).run()

    def reached(self, job: Job) -> int | None:
        return self._hosts(job).reached()

    def release(self, job: Job) -> None:
        """The hosts are others'."""

    def _fill(self, job: Job, hosts: "_SshHosts") -> None:
        """Ships the code and sets the hosts up; home folders may be shared, so the first is done before the others."""
        listed = "\0".join(checkout.files()) if self.ship else ""

        def fill(index: int) -> None:
            if self.ship:
                programs.require(
                    *hosts.reach.copy(index),
                    called=f"copying the code to {hosts.reach.host(index)}",
                    told=listed,
                    folder=str(checkout.FOLDER),
                )
            if self.setup:
                programs.require(
                    *hosts.reach.line(index, self.set_up_line(job)),
                    called=f"--setup on {hosts.reach.host(index)}",
                )

        fill(0)
        remote.on_all(job.count - 1, lambda index: fill(index + 1))

    def _names(self) -> list[str]:
        if not self.hosts:
            raise UserError("--backend=ssh needs --hosts=HOST,HOST… or --hosts=@FILE")
        text = _of_file(self.hosts) if self.hosts.startswith("@") else self.hosts
        names = [name.strip() for name in text.split(",") if name.strip()]
        wrong = next(
            (name for name in names if name.startswith("-") or set(name) & set(" \t'\"$`;&|<>\\#")), None
        )
        if wrong or not names:
            raise UserError(
                f"--hosts: {wrong!r} is no host's name" if wrong else f"--hosts={self.hosts} names no host"
            )
        return names

    def _ssh(self) -> tuple[str, ...]:
        try:
            words = tuple(shlex.split(self.ssh))
        except ValueError as error:
            raise UserError(f"--ssh={self.ssh}: {error}") from error
        if not words:
            raise UserError("--ssh is empty; give a command, such as 'ssh -i KEY'")
        return words

    def _programs(self) -> list[str]:
        return [self._ssh()[0], *(["rsync", "git"] if self.ship else [])]

    def _hosts(self, job: Job) -> "_SshHosts":
        reach = _Ssh((*self._ssh(), *_OPTIONS), tuple(self._names()), self.code_folder(job))
        return _SshHosts(job, reach)

    def _coordinator(self, job: Job) -> str:
        return f"{self.coordinator or self._names()[0].rpartition('@')[2]}:{job.port or jobs.PORT}"


def _of_file(given: str) -> str:
    """The hosts in a file, between commas; what stands behind # is a comment."""
    try:
        lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--hosts={given} cannot be read ({error}); give a file with one host a line"
        ) from error
    return ",".join(line.partition("#")[0] for line in lines)


@dataclasses.dataclass(frozen=True)
class _Ssh:
    """`ssh` and `rsync` to the hosts by number."""

    command: tuple[str, ...]
    hosts: tuple[str, ...]
    folder: str

    def host(self, index: int) -> str:
        return self.hosts[index]

    def shell(self, index: int, words: Sequence[str]) -> tuple[str, ...]:
        return self.line(index, shlex.join(words))

    def line(self, index: int, text: str) -> tuple[str, ...]:
        """The command that runs a line of shell on a host."""
        return (*self.command, self.hosts[index], text)

    def copy(self, index: int) -> tuple[str, ...]:
        """The command that, in the checkout, copies the files named on its stdin to a host's folder."""
        options = ("-a", "--mkpath", "--from0", "--files-from=-", "--ignore-missing-args")
        return (
            "rsync",
            *options,
            "-e",
            shlex.join(self.command),
            "./",
            f"{self.hosts[index]}:{self.folder}/",
        )


class _SshHosts(remote.Hosts):
    """Hosts that are reached by ssh."""

    reach: _Ssh
