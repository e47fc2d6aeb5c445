"""A job as Kubernetes' manifests: a JobSet with a Job for each TPU slice and a pod for each host, and a ConfigMap with its recipe.

The exit-code table stands in the manifest: a pod that was preempted (42), or whose node went, restarts the set without being
counted; other deaths of the table are counted restarts; bad input and bugs end it (decision record 0002).
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from serving.command import UserError
from tools.launchers.fits import recipe_file
from tools.launchers.job import Job
from tools.launchers.restarts import COUNTED, NOT_COUNTED
from trainer.distributed import jobs

JOB_LABEL = "vitforge/job"
SLICE = "slice"  # what the set calls its Jobs
CONTAINER = "trainer"
_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_FAILED = "matching FailJob rule at index [01]$"


@dataclasses.dataclass(frozen=True)
class Manifests:
    """What a user says of the pods, and the manifests that follow."""

    image: Annotated[str, "container image that has Vitforge with its trainer"] = ""
    code: Annotated[str, "folder of Vitforge in the image, in which the command runs"] = "/vitforge"
    namespace: Annotated[str, "namespace of the cluster"] = "default"
    queue: Annotated[str, "Kueue's LocalQueue; empty: no queue"] = ""
    priority: Annotated[str, "Kueue's WorkloadPriorityClass"] = ""
    service_account: Annotated[str, "account that the pods, or the VMs, run as"] = ""
    mount: Annotated[
        tuple[str, ...], "PATH=pvc:CLAIM or PATH=gs://BUCKET, storage that all pods share; may be given again"
    ] = ()
    spot: Annotated[bool, "take spot capacity, which costs less and may be taken away"] = False
    host_network: Annotated[bool, "let the pods use their nodes' network"] = True
    keep_s: Annotated[int, "seconds for which an ended job stays in the cluster"] = 7 * 86400

    def manifests(self, job: Job, name: str) -> list[dict[str, Any]]:
        """Of one job, labelled as part of what is called `name`: itself, or the sweep that it belongs to."""
        recipe = recipe_file(job.command)
        labels = {JOB_LABEL: name}
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
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
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
                        "name": SLICE,
                        "replicas": self.slices(job),
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
            "parallelism": self.hosts(job),
            "completions": self.hosts(job),
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
        volumes = [volume(text, number) for number, text in enumerate(self.mount)]
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
            "name": CONTAINER,
            "image": self.image,
            "workingDir": self.code,
            "command": [_literal(word) for word in (*_guarded(job), *job.command_on_host())],
            "env": self._environment(job),
            "ports": [{"containerPort": job.port or jobs.PORT}],
            **({"resources": {"limits": chips, "requests": chips}} if chips else {}),
            "volumeMounts": mounts,
        }

    def _environment(self, job: Job) -> list[dict[str, Any]]:
        coordinator = f"{job.name}-{SLICE}-0-0.{job.name}:{job.port or jobs.PORT}"
        values = job.environment(0, coordinator)
        del values[jobs.PROCESS_ID]  # a pod's own index, behind those of the slices before its own
        values[jobs.NUM_SLICES] = str(self.slices(job))
        field = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
        return [
            *({"name": name, "value": _literal(value)} for name, value in values.items()),
            {"name": jobs.SLICE, "valueFrom": {"fieldRef": field}},
            {
                "name": jobs.RUN,
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"}},
            },
            *(
                {"name": name, "valueFrom": {"secretKeyRef": secret_key(text)}}
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

    def slices(self, job: Job) -> int:
        """Jobs of the set."""
        return job.topology.slices if job.topology else 1

    def hosts(self, job: Job) -> int:
        """Pods of each Job."""
        return job.topology.hosts if job.topology else job.count


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
        return {"containerName": CONTAINER, "operator": operator, "values": sorted(values)}

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


def secret_key(reference: str) -> dict[str, str]:
    """The Secret and the key in it that a reference names."""
    name, _, key = reference.removeprefix("kubernetes:").partition("/")
    return {"name": name, "key": key}


def volume(text: str, number: int) -> dict[str, Any]:
    """What --mount=PATH=SOURCE brings to a pod.

    Raises:
      UserError: when it is no such text.
    """
    path, _, source = text.partition("=")
    name = {"name": f"mount-{number}"}
    if path.startswith("/") and source.startswith("pvc:"):
        return {**name, "persistentVolumeClaim": {"claimName": source.removeprefix("pvc:")}}
    if path.startswith("/") and source.startswith("gs://"):
        bucket = {"bucketName": source.removeprefix("gs://").strip("/"), "mountOptions": "implicit-dirs"}
        return {**name, "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket}}
    raise UserError(f"--mount={text}: /PATH=pvc:CLAIM or /PATH=gs://BUCKET is expected")
