"""Kubernetes: a JobSet, which Kueue may queue, one Job for each TPU slice and one pod for each host.

The exit-code table stands in the manifest: a pod that was preempted (42), or whose node went, restarts the set without being
counted; other deaths of the table are counted restarts; bad input and bugs end it. JobSet makes the headless service by whose
names the pods meet, and a ConfigMap carries the recipe, so that what runs is the file that its user sees. Manifests are JSON,
which kubectl reads like YAML.
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
from tools.launchers.fits import recipe_file
from tools.launchers.job import Job, on_topology
from tools.launchers.launcher import Finding, Seen, refuse_secrets_of
from tools.launchers.restarts import COUNTED, NOT_COUNTED
from trainer.distributed import jobs

API = "jobset.x-k8s.io/v1alpha2"
_KIND = "jobsets.jobset.x-k8s.io"
_LABEL, _OF = "vitforge/job", "jobset.sigs.k8s.io/jobset-name"
_ASK = "choose a cluster with --context, or ask its administrator"
_INSTALL = "install it (kubernetes.io/docs/tasks/tools)"
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
_CONTAINER, _SLICE = "trainer", "slice"
_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_FAILED = "matching FailJob rule at index [01]$"
_LONGEST = 63  # of a name in Kubernetes
_RANDOM = "-abcde"  # appended to a pod's name


@dataclasses.dataclass(frozen=True)
class JobSetLauncher:
    """One pod for each process."""

    image: Annotated[str, "container image that has Vitforge with its trainer"] = ""
    code: Annotated[str, "folder of Vitforge in the image, in which the command runs"] = "/vitforge"
    namespace: Annotated[str, "namespace of the cluster"] = "default"
    context: Annotated[str, "context of kubectl; empty: its current one"] = ""
    queue: Annotated[str, "Kueue's LocalQueue; empty: no queue"] = ""
    priority: Annotated[str, "Kueue's WorkloadPriorityClass"] = ""
    service_account: Annotated[str, "account that the pods, or the VMs, run as"] = ""
    mount: Annotated[
        tuple[str, ...], "PATH=pvc:CLAIM or PATH=gs://BUCKET, storage that all pods share; may be given again"
    ] = ()
    spot: Annotated[bool, "take spot capacity, which costs less and may be taken away"] = False
    host_network: Annotated[bool, "let the pods use their nodes' network"] = True
    keep_s: Annotated[int, "seconds for which an ended job stays in the cluster"] = 7 * 86400

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "env", "file")
        if not self.image:
            raise UserError("--backend=jobset needs --image=REGISTRY/NAME:TAG, an image that has Vitforge")
        if job.timeout_s:
            raise UserError("--timeout_s is not for jobset; delete the job when it has taken too long")
        for text in self.mount:
            _volume(text, 0)
        self._check_names(job)
        self._check_workdir(job)
        job = on_topology(job) if job.topology else dataclasses.replace(job, processes=job.processes or 1)
        longest = f"{job.name}-{_SLICE}-{self._slices(job) - 1}-{self._hosts(job) - 1}{_RANDOM}"
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
            **{f"secret {variable}": _key(text)["name"] for variable, text in job.secrets.items()},
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
        items = [one for job in points for one in self._manifests(job, name)]
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
        said = self._require("get", kind, f"--selector={_LABEL}={job}", "--output=json")
        items = json.loads(said)["items"]
        assert isinstance(items, list)
        return items

    def logs(self, handle: str, follow: bool, since_s: float) -> tuple[str, ...]:
        selected = f"--selector={_LABEL}={handle}"
        since = [f"--since={math.ceil(since_s)}s"] if since_s else []
        shown = ("--prefix", "--tail=-1", *since, "--ignore-errors", "--max-log-requests=1000")
        return (
            *self._kubectl(),
            "logs",
            selected,
            f"--container={_CONTAINER}",
            *shown,
            *(["--follow"] if follow else []),
        )

    def stop(self, handle: str) -> None:
        selected = f"--selector={_LABEL}={handle}"
        self._require("delete", f"{_KIND},configmaps", selected, "--cascade=foreground", "--timeout=120s")

    def _manifests(self, job: Job, name: str) -> list[dict[str, Any]]:
        recipe = recipe_file(job.command)
        labels = {_LABEL: name}
        found: list[dict[str, Any]] = []
        if recipe:
            metadata = {"name": f"{job.name}-recipe", "namespace": self.namespace, "labels": labels}
            data = {recipe.name: recipe.read_text(encoding="utf-8")}
            found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        return [*found, self._jobset(job, labels, recipe)]

    def _jobset(self, job: Job, labels: dict[str, str], recipe: Path | None) -> dict[str, Any]:
        queue = {"kueue.x-k8s.io/queue-name": self.queue, "kueue.x-k8s.io/priority-class": self.priority}
        exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        return {
            "apiVersion": API,
            "kind": "JobSet",
            "metadata": {
                "name": job.name,
                "namespace": self.namespace,
                "labels": labels | {key: value for key, value in queue.items() if value},
                **({"annotations": exclusive} if job.topology else {}),
            },
            "spec": {
                "ttlSecondsAfterFinished": self.keep_s,
                "network": {
                    "enableDNSHostnames": True,
                    "subdomain": job.name,
                    "publishNotReadyAddresses": True,
                },
                "successPolicy": {"operator": "All"},
                "failurePolicy": _failure_policy(job.max_restarts),
                "replicatedJobs": [
                    {
                        "name": _SLICE,
                        "replicas": self._slices(job),
                        "template": {
                            "metadata": {"labels": labels},
                            "spec": self._one_slice(job, labels, recipe),
                        },
                    }
                ],
            },
        }

    def _one_slice(self, job: Job, labels: dict[str, str], recipe: Path | None) -> dict[str, Any]:
        annotations = {"gke-gcsfuse/volumes": "true"} if any("=gs://" in text for text in self.mount) else {}
        return {
            "parallelism": self._hosts(job),
            "completions": self._hosts(job),
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _pod_rules()},
            "template": {
                "metadata": {"labels": labels, **({"annotations": annotations} if annotations else {})},
                "spec": self._pod(job, recipe),
            },
        }

    def _pod(self, job: Job, recipe: Path | None) -> dict[str, Any]:
        network: dict[str, Any] = (
            {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if self.host_network else {}
        )
        selector, tolerations = self._nodes(job)
        volumes = [_volume(text, number) for number, text in enumerate(self.mount)]
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        if recipe:
            volumes.append({"name": "recipe", "configMap": {"name": f"{job.name}-recipe"}})
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": math.ceil(job.grace_s),
            **network,
            **({"serviceAccountName": self.service_account} if self.service_account else {}),
            **({"nodeSelector": selector} if selector else {}),
            **({"tolerations": tolerations} if tolerations else {}),
            "containers": [self._container(job, recipe)],
            "volumes": volumes,
        }

    def _container(self, job: Job, recipe: Path | None) -> dict[str, Any]:
        mounts: list[dict[str, Any]] = [
            {"name": f"mount-{number}", "mountPath": text.partition("=")[0]}
            for number, text in enumerate(self.mount)
        ]
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        if recipe:
            where = f"{self.code}/{recipe.as_posix()}"
            mounts.append({"name": "recipe", "mountPath": where, "subPath": recipe.name, "readOnly": True})
        chips = {"google.com/tpu": str(job.topology.chips_per_host)} if job.topology else {}
        return {
            "name": _CONTAINER,
            "image": self.image,
            "workingDir": self.code,
            "command": [_literal(word) for word in (*_guarded(job), *job.command_on_host())],
            "env": self._environment(job),
            "ports": [{"containerPort": job.port or jobs.PORT}],
            **({"resources": {"limits": chips, "requests": chips}} if chips else {}),
            "volumeMounts": mounts,
        }

    def _environment(self, job: Job) -> list[dict[str, Any]]:
        coordinator = f"{job.name}-{_SLICE}-0-0.{job.name}:{job.port or jobs.PORT}"
        values = job.environment(0, coordinator)
        del values[jobs.PROCESS_ID]  # a pod's own index, behind those of the slices before its own
        values[jobs.NUM_SLICES] = str(self._slices(job))
        field = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
        return [
            *({"name": name, "value": _literal(value)} for name, value in values.items()),
            {"name": jobs.SLICE, "valueFrom": {"fieldRef": field}},
            {
                "name": jobs.RUN,
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"}},
            },
            *(
                {"name": name, "valueFrom": {"secretKeyRef": _key(text)}}
                for name, text in job.secrets.items()
            ),
        ]

    def _nodes(self, job: Job) -> tuple[dict[str, str], list[dict[str, str]]]:
        """(Labels of the nodes, taints that the pods tolerate)."""
        selector: dict[str, str] = {}
        tolerations: list[dict[str, str]] = []
        if job.topology:
            selector["cloud.google.com/gke-tpu-accelerator"] = _ACCELERATORS[job.topology.chip.name]
            selector["cloud.google.com/gke-tpu-topology"] = job.topology.grid
            tolerations.append({"key": "google.com/tpu", "operator": "Exists"})
        if self.spot:
            selector["cloud.google.com/gke-spot"] = "true"
            tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Exists"})
        return selector, tolerations

    def _slices(self, job: Job) -> int:
        return job.topology.slices if job.topology else 1

    def _hosts(self, job: Job) -> int:
        return job.topology.hosts if job.topology else job.count

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
        done = programs.run(*self._kubectl(), *arguments)
        if done.returncode:
            raise UserError(f"kubectl {arguments[0]} failed: {programs.why_failed(done)}")
        return done.stdout


_GONE = "there is none of this name"


def _guarded(job: Job) -> tuple[str, ...]:
    """What goes before the command, so that a set that gets no further ends: Kubernetes counts restarts, not progress."""
    workdir = job.option("workdir")
    python = job.command_on_host()[0] if job.command_on_host() != job.command else "python3"
    return (python, "-m", "tools.launchers.breaker", f"--workdir={workdir}", "--") if workdir else ()


def _failure_policy(most: int) -> dict[str, Any]:
    ours = {"onJobFailureReasons": ["PodFailurePolicy"]}
    again = {"name": "preempted", "action": "RestartJobSetAndIgnoreMaxRestarts", **ours}
    return {
        "maxRestarts": most,
        "rules": [
            {**again, "onJobFailureMessagePatterns": [_FAILED]},
            {"name": "not_retried", "action": "FailJobSet", **ours},
        ],
    }


def _pod_rules() -> list[dict[str, Any]]:
    """The exit-code table; `_FAILED` knows the first two by their places."""

    def codes(operator: str, values: Sequence[int]) -> dict[str, Any]:
        return {"containerName": _CONTAINER, "operator": operator, "values": sorted(values)}

    preempted = sorted(map(int, NOT_COUNTED))
    again = [*preempted, *map(int, COUNTED)]
    return [
        {"action": "FailJob", "onExitCodes": codes("In", preempted)},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": codes("NotIn", again)},
    ]


def _literal(text: str) -> str:
    """`text` for a field in which Kubernetes would put variables in place of $(NAME)."""
    return text.replace("$", "$$")


def _key(reference: str) -> dict[str, str]:
    name, _, key = reference.removeprefix("kubernetes:").partition("/")
    return {"name": name, "key": key}


def _volume(text: str, number: int) -> dict[str, Any]:
    path, _, source = text.partition("=")
    name = {"name": f"mount-{number}"}
    if path.startswith("/") and source.startswith("pvc:"):
        return {**name, "persistentVolumeClaim": {"claimName": source.removeprefix("pvc:")}}
    if path.startswith("/") and source.startswith("gs://"):
        bucket = {"bucketName": source.removeprefix("gs://").strip("/"), "mountOptions": "implicit-dirs"}
        return {**name, "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket}}
    raise UserError(f"--mount={text}: /PATH=pvc:CLAIM or /PATH=gs://BUCKET is expected")


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
