"""Processes on hosts that are reached by a command such as ssh: what they are told, and what is asked of the hosts before.

Nothing of a job passes through a shell: a host is asked to run `attended`, which reads the job from its stdin.
"""

import concurrent.futures
import json
import secrets as random_tokens
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from serving.command import UserError
from tools.launchers.gang import Member
from tools.launchers.job import Job
from tools.launchers.launcher import Finding
from tools.launchers.secrets import files, from_environment

CODE = Path(__file__).resolve().parents[2]
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


def told(job: Job, index: int, coordinator: str, folder: str) -> dict[str, Any]:
    """What `attended` is told of process `index`, without the values of secrets."""
    return {
        "command": list(job.command_on_host()),
        "folder": folder,
        "env": job.environment(index, coordinator),
        "secret_files": files(job.secrets),
        "grace_s": job.grace_s,
        "silence_s": _SILENCE_S,
    }


def members(job: Job, reach: Reach, coordinator: str) -> list[Member]:
    """The processes of `job`, one on each host."""
    values = from_environment(job.secrets)
    jobs = [told(job, index, coordinator, reach.folder) for index in range(job.count)]
    for one in jobs:
        one["env"] |= values
    command = python(job, reach.folder), f"{reach.folder}/tools/launchers/attended.py"
    return [
        Member(reach.shell(index, command), {}, json.dumps(one), lost_code=_LOST)
        for index, one in enumerate(jobs)
    ]


def rendered(job: Job, reach: Reach, coordinator: str) -> dict[str, str]:
    """What every process is told, and the command that runs it."""
    command = python(job, reach.folder), f"{reach.folder}/tools/launchers/attended.py"
    files = {
        f"process_{index}.json": json.dumps(told(job, index, coordinator, reach.folder), indent=2) + "\n"
        for index in range(job.count)
    }
    lines = [
        f"{shlex.join(reach.shell(index, command))} < process_{index}.json  # and signs of life"
        for index in range(job.count)
    ]
    return {**files, "processes.sh": "\n".join(lines) + "\n"}


def python(job: Job, folder: str) -> str:
    """The Python of the hosts, from their home folder; a relative virtual environment lies in the folder of the code."""
    if not job.venv:
        return "python3"
    return f"{job.venv if job.venv.startswith('/') else f'{folder}/{job.venv}'}/bin/python"


def require_checkout() -> None:
    """Refuses to ship what is no checkout.

    Raises:
      UserError: when the launcher was installed otherwise.
    """
    if not (CODE / "pyproject.toml").is_file():
        raise UserError(
            "there is no checkout here to ship to the hosts; launch from one, or give --noship where they have Vitforge"
        )


def require_answers(job: Job, reach: Reach) -> None:
    """Refuses hosts that do not answer, or whose Python or packages differ.

    Raises:
      UserError: naming the first of them.
    """
    _refuse(look_at_versions(job, reach))


def wait_for_answers(job: Job, reach: Reach, patience_s: float) -> str:
    """Stays until every host answers; "", or what those say that do not in time."""
    deadline_s, said = time.monotonic() + patience_s, ""
    while True:
        silent = [one for one in look_at_versions(job, reach) if one.problem]
        if not silent:
            return ""
        problem = f"{silent[0].what}: {silent[0].problem}"
        if time.monotonic() > deadline_s:
            print(f"error: {problem}, for {patience_s:g} s (--wait_s)", file=sys.stderr, flush=True)
            return problem
        if problem != said:
            print(f"[launch] waiting, {problem}", file=sys.stderr, flush=True)
        said = problem
        time.sleep(_POLL_S)


def require_shared_workdir(job: Job, reach: Reach) -> None:
    """Refuses a workdir that the hosts do not share; raises as `require_answers` does."""
    _refuse(look_at_workdir(job, reach))


def _refuse(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.problem:
            raise UserError(f"{finding.what}: {finding.problem}; {finding.remedy}")


def look_at_versions(job: Job, reach: Reach) -> list[Finding]:
    """Of every host: whether it answers, and has what host 0 has."""
    answers = on_all(job.count, lambda index: _ask(job, reach, index, "", "", ""))
    findings, first = [], answers[0]
    for index, answer in enumerate(answers):
        what = f"host {reach.host(index)}"
        if isinstance(answer, str):
            findings.append(Finding(what, answer, "see that it runs, and that this machine may log in to it"))
            continue
        findings.append(_against_first(what, answer, first, reach.host(0)))
        if _trains(job) and not answer["packages"]["jax"]:
            remedy = (
                "install Vitforge there (pip install 'vitforge[train]'), or name its environment with --venv"
            )
            findings.append(Finding(what, f"{python(job, reach.folder)} has no jax", remedy))
    return findings


def _against_first(what: str, answer: Mapping[str, Any], first: Any, name: str) -> Finding:
    if isinstance(first, str):
        return Finding(what)
    pairs = [("Python", answer["python"], first["python"])]
    pairs += [(package, answer["packages"][package], first["packages"][package]) for package in COMPARED]
    for package, here, there in pairs:
        if here != there:
            problem = f"has {package} {here or 'not at all'}, and {name} has {there or 'none'}"
            return Finding(what, problem, "give all hosts the same versions (constraints.txt locks them)")
    return Finding(f"{what}: Python {answer['python']}, jax {answer['packages']['jax'] or 'none'}")


def look_at_workdir(job: Job, reach: Reach) -> list[Finding]:
    """Whether a file that host 0 leaves beside the workdir is seen by the others."""
    workdir = job.option("workdir")
    if not workdir or job.count == 1:
        return []
    token = f".vitforge-{random_tokens.token_hex(8)}"
    left = _ask(job, reach, 0, workdir, token, "leave")
    try:
        if isinstance(left, str) or not left["found"]:
            where = left if isinstance(left, str) else f"{left['place']} may not be written"
            return [Finding(f"workdir {workdir}", f"host {reach.host(0)}: {where}", "give another --workdir")]
        others = on_all(job.count - 1, lambda index: _ask(job, reach, index + 1, workdir, token, "find"))
    finally:
        _ask(job, reach, 0, workdir, token, "clean")
    blind = [
        reach.host(index)
        for index, answer in enumerate(others, start=1)
        if isinstance(answer, str) or not answer["found"]
    ]
    if not blind:
        return [Finding(f"workdir {workdir} is shared")]
    problem = f"{', '.join(blind)} does not see what {reach.host(0)} wrote in {left['place']}"
    return [Finding(f"workdir {workdir}", problem, "give a folder that all hosts share")]


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


def look_at_port(job: Job, reach: Reach, coordinator: str) -> list[Finding]:
    """Whether the other hosts reach the coordinator's port on host 0."""
    address, _, port = coordinator.rpartition(":")
    listen = reach.shell(0, (python(job, reach.folder), "-c", _LISTEN, port))
    with subprocess.Popen(
        listen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        if "listening" not in server.stdout.readline():
            problem = f"{reach.host(0)} cannot listen there"
            return [Finding(f"port {port}", problem, "choose another with --port")]
        calls = on_all(job.count - 1, lambda index: _calls(job, reach, index + 1, address, port))
        server.communicate()
    deaf = [reach.host(index) for index, heard in enumerate(calls, start=1) if not heard]
    if not deaf:
        return [Finding(f"port {port} of {address} is reached by all")]
    remedy = (
        "open the port between the hosts, choose another with --port, or name an address with --coordinator"
    )
    return [Finding(f"coordinator {coordinator}", f"{', '.join(deaf)} does not reach it", remedy)]


def _calls(job: Job, reach: Reach, index: int, address: str, port: str) -> bool:
    call = reach.shell(index, (python(job, reach.folder), "-c", _CALL, address, port))
    return subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def _ask(job: Job, reach: Reach, index: int, workdir: str, token: str, doing: str) -> dict[str, Any] | str:
    """What `probe` says on a host, or why it could not be asked."""
    asked = {
        "packages": COMPARED,
        "folder": reach.folder,
        "workdir": workdir,
        "token": token,
        "doing": doing,
    }
    command = reach.shell(index, (python(job, reach.folder), "-", json.dumps(asked)))
    probe = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            command, input=probe, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not answer within {_PATIENCE_S} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return (
            f"does not answer ({last})"
            if done.returncode == _LOST
            else f"cannot run {python(job, reach.folder)} ({last})"
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def on_all(count: int, ask: Callable[[int], Any]) -> list[Any]:
    """`ask` of every host, some at the same time, in their order."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(ask, range(count)))


def _trains(job: Job) -> bool:
    return "-m" in job.command[:2] and job.command[2:3][0].startswith("trainer.")
