"""Kubernetes: a job as a JobSet, which Kueue may queue, handed over and looked at by kubectl.

JobSet makes the headless service by whose names the pods meet. Manifests are JSON, which kubectl reads like YAML.
"""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from serving.command import ExitCode, UserError
from tools.launchers import programs
from tools.launchers.job import Job, on_topology
from tools.launchers.jobset_manifest import CONTAINER, JOB_LABEL, SLICE, Manifests, secret_key, volume
from tools.launchers.launcher import Finding, Seen, refuse_secrets_of

_KIND, _OF = "jobsets.jobset.x-k8s.io", "jobset.sigs.k8s.io/jobset-name"
_ASK = "choose a cluster with --context, or ask its administrator"
_INSTALL = "install it (kubernetes.io/docs/tasks/tools)"
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
_LONGEST = 63  # of a name in Kubernetes
_RANDOM = "-abcde"  # appended to a pod's name
_GONE = "there is none of this name"


@dataclasses.dataclass(frozen=True)
class JobSetLauncher(Manifests):
    """One pod for each process."""

    context: Annotated[str, "context of kubectl; empty: its current one"] = ""

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "env", "file")
        if not self.image:
            raise UserError("--backend=jobset needs --image=REGISTRY/NAME:TAG, an image that has Vitforge")
        if job.timeout_s:
            raise UserError("--timeout_s is not for jobset; delete the job when it has taken too long")
        for text in self.mount:
            volume(text, 0)
        self._check_names(job)
        self._check_workdir(job)
        job = on_topology(job) if job.topology else dataclasses.replace(job, processes=job.processes or 1)
        longest = f"{job.name}-{SLICE}-{self.slices(job) - 1}-{self.hosts(job) - 1}{_RANDOM}"
        if len(longest) > _LONGEST:
            raise UserError(
                f"--name={job.name} is too long for Kubernetes: pods would be called {longest}, with {len(longest)} of "
                f"{_LONGEST} letters; use {len(job.name) - len(longest) + _LONGEST} at most"
            )
        return job

    def _check_workdir(self, job: Job) -> None:
        workdir = Path(self.code) / job.option("workdir")
        shared = [Path(text.partition("=")[0]) for text in self.mount]
        if job.option("workdir") and not any(workdir.is_relative_to(path) for path in shared):
            raise UserError(
                f"--workdir={job.option('workdir')} lies in no storage that the pods share, and ends with them; mount some there "
                "with --mount=/PATH=pvc:CLAIM or --mount=/PATH=gs://BUCKET"
            )

    def _check_names(self, job: Job) -> None:
        names = {
            "namespace": self.namespace,
            "queue": self.queue,
            "priority": self.priority,
            "service_account": self.service_account,
            **{f"secret {variable}": secret_key(text)["name"] for variable, text in job.secrets.items()},
            **{f"mount {text}": text.partition("=pvc:")[2] for text in self.mount},
        }
        for what, name in names.items():
            if name and not _DNS.fullmatch(name):
                raise UserError(
                    f"--{what}: Kubernetes refuses the name {name!r}; it takes lower-case letters, digits, '-' and '.'"
                )

    def render(self, job: Job) -> dict[str, str]:
        return self.render_all([job], job.name)

    def render_all(self, points: Sequence[Job], name: str) -> dict[str, str]:
        """The manifests of one job or of a sweep's, and how they are handed over."""
        items = [one for job in points for one in self.manifests(job, name)]
        whole = {"apiVersion": "v1", "kind": "List", "items": items}
        kubectl = shlex.join(self._kubectl())
        return {
            "manifests.json": json.dumps(whole, indent=2) + "\n",
            "submit.sh": 'cd "$(dirname "$0")" || exit\n'
            f"{kubectl} apply --dry-run=server --validate=strict --filename=manifests.json || exit\n"
            f"{kubectl} apply --filename=manifests.json\n",
        }

    def doctor(self, job: Job) -> list[Finding]:
        if missing := programs.missing("kubectl", remedy=_INSTALL):
            return missing
        asked = {
            f"namespace {self.namespace} takes JobSets": ("auth", "can-i", "create", _KIND),
            "the cluster knows JobSet": ("api-resources", "--api-group=jobset.x-k8s.io", "--output=name"),
        }
        if self.queue:
            asked[f"queue {self.queue}"] = ("get", "localqueues.kueue.x-k8s.io", self.queue, "--output=name")
        return [self._finding(what, arguments) for what, arguments in asked.items()]

    def submit(self, points: Sequence[Job], name: str, rendered: Path) -> str:
        """Hands the manifests over; the job's name. One of this name that has ended makes room."""
        programs.require_there("kubectl", remedy=_INSTALL)
        before = self.look(name)
        if before.state in ("waiting", "running"):
            raise UserError(
                f"a job {name} is {before.state} in namespace {self.namespace}; stop it or give another --name"
            )
        if before.words != _GONE:
            self.stop(name)
        manifests = f"--filename={rendered / 'manifests.json'}"
        self._require("apply", "--dry-run=server", "--validate=strict", manifests)
        self._require("apply", manifests)
        return name

    def point(self, handle: str, number: int, name: str) -> str:
        return f"{handle}/{name}"

    def look(self, handle: str) -> Seen:
        """Of a whole job, or of JOB/NAME, one of a sweep's."""
        job, _, name = handle.partition("/")
        sets = [one for one in self._get(_KIND, job) if name in ("", one["metadata"]["name"])]
        seen = _seen(sets)
        if seen.state != "ended" or seen.code == ExitCode.DONE or seen.words == _GONE:
            return seen
        names = [one["metadata"]["name"] for one in sets]
        parts = [one for one in self._get("jobs.batch", job) if one["metadata"]["labels"].get(_OF) in names]
        return dataclasses.replace(seen, code=_code_of(parts))

    def _get(self, kind: str, job: str) -> list[dict[str, Any]]:
        said = self._require("get", kind, f"--selector={JOB_LABEL}={job}", "--output=json")
        items = json.loads(said)["items"]
        assert isinstance(items, list)
        return items

    def logs(self, handle: str, follow: bool, since_s: float) -> tuple[str, ...]:
        selected = f"--selector={JOB_LABEL}={handle}"
        since = [f"--since={math.ceil(since_s)}s"] if since_s else []
        shown = ("--prefix", "--tail=-1", *since, "--ignore-errors", "--max-log-requests=1000")
        return (
            *self._kubectl(),
            "logs",
            selected,
            f"--container={CONTAINER}",
            *shown,
            *(["--follow"] if follow else []),
        )

    def stop(self, handle: str) -> None:
        selected = f"--selector={JOB_LABEL}={handle}"
        self._require("delete", f"{_KIND},configmaps", selected, "--cascade=foreground", "--timeout=120s")

    def _kubectl(self) -> tuple[str, ...]:
        context = [f"--context={self.context}"] if self.context else []
        return ("kubectl", *context, f"--namespace={self.namespace}")

    def _finding(self, what: str, arguments: Sequence[str]) -> Finding:
        done = programs.run(*self._kubectl(), *arguments)
        if done.returncode or done.stdout.strip() in ("", "no"):
            said = programs.why_failed(done) if done.returncode else done.stdout.strip() or "nothing"
            return Finding(what, f"kubectl {' '.join(arguments[:3])} says {said}", _ASK)
        return Finding(what)

    def _require(self, *arguments: str) -> str:
        return programs.require(*self._kubectl(), *arguments, called=f"kubectl {arguments[0]}")


def _seen(sets: list[dict[str, Any]]) -> Seen:
    """What the status of JobSets says of the job that they are."""
    if not sets:
        return Seen("ended", _GONE)
    states = [one.get("status", {}) for one in sets]
    ends = [status.get("terminalState") for status in states]
    if "Failed" in ends and all(ends):
        failed = next(status for status in states if status.get("terminalState") == "Failed")
        conditions = failed.get("conditions", ())
        message = next((one.get("message", "") for one in conditions if one["type"] == "Failed"), "failed")
        return Seen("ended", message, ExitCode.BUG)
    if all(end == "Completed" for end in ends):
        return Seen("ended", "completed", ExitCode.DONE)
    running = [
        one for status in states for one in status.get("replicatedJobsStatus", ()) if one.get("active")
    ]
    restarts = sum(status.get("restarts", 0) for status in states)
    words = f"{sum(map(bool, ends))} of {len(sets)} ended, {restarts} restarts"
    return Seen("running" if running else "waiting", words)


def _code_of(found: list[dict[str, Any]]) -> int:
    """The exit code that ended a set, as the conditions of its Jobs tell it; that of a bug where they do not."""
    conditions = [one for job in found for one in job.get("status", {}).get("conditions", ())]
    codes = (re.search(r"exit code (\d+)", one.get("message", "")) for one in conditions)
    return next((int(code[1]) for code in codes if code), int(ExitCode.BUG))
