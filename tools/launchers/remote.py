"""Processes on hosts that are reached by a command such as ssh: what they are told, and what is asked of the hosts before.

Nothing of a job passes through a shell: a host is asked to run `attended`, which reads the job from its stdin.
"""

import concurrent.futures
import dataclasses
import json
import secrets as random_tokens
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from serving.command import UserError
from tools.launchers import programs
from tools.launchers.gang import Member
from tools.launchers.job import Job
from tools.launchers.launcher import Finding
from tools.launchers.restarts import UNKNOWN
from tools.launchers.running import say
from tools.launchers.secrets import files, from_environment

COMPARED = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_AT_ONCE = 16  # hosts that are asked at the same time
_PATIENCE_S = 120
_POLL_S = 5.0
_SILENCE_S = 30.0
_LOST = 255  # what ssh ends with when it, not the command, failed


class Reach(Protocol):
    """How the hosts of a job are reached."""

    @property
    def folder(self) -> str:
        """Of the code on the hosts, from the home folder."""

    def host(self, index: int) -> str:
        """Its name in messages."""

    def shell(self, index: int, words: Sequence[str]) -> tuple[str, ...]:
        """The command that runs `words` on a host, with the stdin and the exit code of the command."""


@dataclasses.dataclass(frozen=True)
class CodeOnHosts:
    """How the code comes to the hosts, as their users say; what back ends have in common that reach hosts."""

    folder: Annotated[str, "folder of the code on the hosts, from the home folder; empty: vitforge/NAME"] = ""
    ship: Annotated[bool, "copy this checkout to the hosts"] = True
    setup: Annotated[str, "command that each host runs once, in the code's folder, such as 'make setup'"] = ""
    wait_s: Annotated[float, "longest wait, in seconds, for capacity or for a host that was lost"] = 3600.0

    def code_folder(self, job: Job) -> str:
        """On the hosts, from the home folder."""
        return self.folder or f"vitforge/{job.name or 'job'}"

    def set_up_line(self, job: Job) -> str:
        """The line of shell that sets a host up."""
        return f"cd {shlex.quote(self.code_folder(job))} && {self.setup}"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The hosts of a job, which numbers tell apart: process N runs on host N."""

    job: Job
    reach: Reach

    def members(self, coordinator: str) -> list[Member]:
        """The processes of the job, with the secrets that are variables here."""
        values = from_environment(self.job.secrets)
        members = []
        for index in range(self.job.count):
            told = self._told(index, coordinator)
            told["env"] |= values
            members.append(Member(self._attended(index), {}, json.dumps(told), lost_code=_LOST))
        return members

    def rendered(self, coordinator: str, first: Sequence[str] = (), show: str = "cat") -> dict[str, str]:
        """What every process is told, and the script that runs them; secrets of the launcher's environment are left out.

        The script begins with the lines `first`; `show` is its command that writes what a process is told.
        """
        indices = range(self.job.count)
        told = {
            f"process_{index}.json": json.dumps(self._told(index, coordinator)) + "\n" for index in indices
        }
        alive = "while sleep 5; do echo; done"
        lines = [
            f"{{ {show} process_{index}.json; {alive}; }} | {shlex.join(self._attended(index))} &"
            for index in indices
        ]
        script = ("#!/bin/sh", 'cd "$(dirname "$0")" || exit', *first, *lines, "wait")
        return {**told, "processes.sh": "\n".join(script) + "\n"}

    def python(self) -> str:
        """The hosts' Python, from their home folder; a relative virtual environment lies in the folder of the code."""
        venv = self.job.venv
        if not venv:
            return "python3"
        return f"{venv if venv.startswith('/') else f'{self.reach.folder}/{venv}'}/bin/python"

    def require_reached(self) -> None:
        """Refuses hosts that do not answer.

        Raises:
          UserError: naming the first of them.
        """
        _refuse(self.look_at_reach())

    def require_versions(self) -> None:
        """Refuses hosts whose Python or packages differ; raises as `require_reached` does."""
        _refuse(self.look_at_versions())

    def require_shared_workdir(self) -> None:
        """Refuses a workdir that the hosts do not share; raises as `require_reached` does."""
        _refuse(self.look_at_workdir())

    def wait_until_reached(self, patience_s: float) -> str:
        """Stays until every host answers; "", or what the first says that does not in time."""
        deadline_s, said = time.monotonic() + patience_s, ""
        while silent := [one for one in self.look_at_reach() if one.problem]:
            problem = f"{silent[0].what}: {silent[0].problem}"
            if time.monotonic() > deadline_s:
                print(f"error: {problem}, for {patience_s:g} s (--wait_s)", file=sys.stderr, flush=True)
                return problem
            if problem != said:
                say(f"waiting: {problem}")
            said = problem
            time.sleep(_POLL_S)
        return ""

    def reached(self) -> int | None:
        """The newest step in the workdir, as host 0 sees it; UNKNOWN when it does not say."""
        workdir = self.job.option("workdir")
        if not workdir:
            return None
        answer = self._ask(0, workdir)
        return UNKNOWN if isinstance(answer, str) else max(answer["steps"], default=None)

    def look_at_reach(self) -> list[Finding]:
        """Of every host: whether it answers."""

        def look(index: int) -> Finding:
            what = f"host {self.reach.host(index)}"
            try:
                done = programs.run(*self.reach.shell(index, ("true",)), timeout_s=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                return Finding(what, f"did not answer within {_PATIENCE_S} s", "see that it runs")
            remedy = "see that it runs, and that this machine may log in to it without a password"
            return (
                Finding(what, f"does not answer ({programs.why_failed(done)})", remedy)
                if done.returncode
                else Finding(what)
            )

        return on_all(self.job.count, look)

    def look_at_versions(self) -> list[Finding]:
        """Of every host: whether it has a Python with what host 0 has."""
        answers = on_all(self.job.count, lambda index: self._ask(index, ""))
        findings = []
        for index, answer in enumerate(answers):
            what = f"host {self.reach.host(index)}"
            if isinstance(answer, str):
                remedy = "name the hosts' environment with --venv, or install Python there"
                findings.append(Finding(what, f"cannot run {self.python()} ({answer})", remedy))
                continue
            findings.append(self._against_first(what, answer, answers[0]))
            if self._trains() and not answer["packages"]["jax"]:
                remedy = "install Vitforge there (pip install 'vitforge[train]'), or name its environment with --venv"
                findings.append(Finding(what, f"{self.python()} has no jax", remedy))
        return findings

    def _against_first(self, what: str, answer: Mapping[str, Any], first: Any) -> Finding:
        if isinstance(first, str):
            return Finding(what)
        pairs = [("Python", answer["python"], first["python"])]
        pairs += [(package, answer["packages"][package], first["packages"][package]) for package in COMPARED]
        for package, here, there in pairs:
            if here != there:
                problem = (
                    f"has {package} {here or 'not at all'}, and {self.reach.host(0)} has {there or 'none'}"
                )
                return Finding(what, problem, "give all hosts the same versions (constraints.txt locks them)")
        return Finding(f"{what}: Python {answer['python']}, jax {answer['packages']['jax'] or 'none'}")

    def look_at_workdir(self) -> list[Finding]:
        """Whether a file that host 0 leaves beside the workdir is seen by the others."""
        workdir = self.job.option("workdir")
        if not workdir or self.job.count == 1:
            return []
        what, token = f"workdir {workdir}", f".vitforge-{random_tokens.token_hex(8)}"
        left = self._ask(0, workdir, token, "leave")
        try:
            if isinstance(left, str) or not left["found"]:
                where = left if isinstance(left, str) else f"{left['place']} may not be written"
                return [Finding(what, f"host {self.reach.host(0)}: {where}", "give another --workdir")]
            others = on_all(self.job.count - 1, lambda index: self._ask(index + 1, workdir, token, "find"))
        finally:
            self._ask(0, workdir, token, "clean")
        blind = [
            self.reach.host(index)
            for index, answer in enumerate(others, start=1)
            if isinstance(answer, str) or not answer["found"]
        ]
        if not blind:
            return [Finding(f"{what} is shared")]
        problem = f"{', '.join(blind)} does not see what {self.reach.host(0)} wrote in {left['place']}"
        return [Finding(what, problem, "give a folder that all hosts share")]

    def look_at_port(self, coordinator: str) -> list[Finding]:
        """Whether the other hosts reach the coordinator's port on host 0."""
        address, _, port = coordinator.rpartition(":")
        listen = self.reach.shell(0, (self.python(), "-c", _LISTEN, port))
        with subprocess.Popen(
            listen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            assert server.stdout is not None
            if "listening" not in server.stdout.readline():
                problem = f"{self.reach.host(0)} cannot listen there"
                return [Finding(f"port {port}", problem, "choose another with --port")]
            calls = on_all(self.job.count - 1, lambda index: self._calls(index + 1, address, port))
            server.communicate()
        deaf = [self.reach.host(index) for index, heard in enumerate(calls, start=1) if not heard]
        if not deaf:
            return [Finding(f"port {port} of {address} is reached by all")]
        remedy = "open the port between the hosts, choose another with --port, or name an address with --coordinator"
        return [Finding(f"coordinator {coordinator}", f"{', '.join(deaf)} does not reach it", remedy)]

    def _calls(self, index: int, address: str, port: str) -> bool:
        return (
            programs.run(*self.reach.shell(index, (self.python(), "-c", _CALL, address, port))).returncode
            == 0
        )

    def _ask(self, index: int, workdir: str, token: str = "", doing: str = "") -> dict[str, Any] | str:
        """What `probe` says on a host, or why it says nothing."""
        asked = {"folder": self.reach.folder, "workdir": workdir, "token": token, "doing": doing}
        command = self.reach.shell(index, (self.python(), "-", json.dumps({**asked, "packages": COMPARED})))
        probe = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
        try:
            done = programs.run(*command, told=probe, timeout_s=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"no answer within {_PATIENCE_S} s"
        if done.returncode:
            return programs.why_failed(done)
        # A login shell may have words of its own, before and after.
        answers = [line for line in done.stdout.splitlines() if line.startswith('{"python"')]
        return json.loads(answers[-1]) if answers else "it did not say what it has"

    def _attended(self, index: int) -> tuple[str, ...]:
        return self.reach.shell(index, (self.python(), f"{self.reach.folder}/tools/launchers/attended.py"))

    def _told(self, index: int, coordinator: str) -> dict[str, Any]:
        """What `attended` is told of process `index`, without the secrets that are variables here."""
        return {
            "command": list(self.job.command_on_host()),
            "folder": self.reach.folder,
            "env": self.job.environment(index, coordinator),
            "secret_files": files(self.job.secrets),
            "grace_s": self.job.grace_s,
            "silence_s": _SILENCE_S,
        }

    def _trains(self) -> bool:
        words = self.job.command
        return "-m" in words[:2] and len(words) > 2 and words[2].startswith("trainer.")


_LISTEN = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
print("listening", flush=True)
sys.stdin.read()
"""
_CALL = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()
"""


def _refuse(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.problem:
            raise UserError(f"{finding.what}: {finding.problem}; {finding.remedy}")


def on_all(count: int, ask: Callable[[int], Any]) -> list[Any]:
    """`ask` of every host, some at the same time, in their order."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(ask, range(count)))
