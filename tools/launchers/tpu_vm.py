"""TPU VMs of Google Cloud, as a queued resource that this launcher makes, uses and deletes; several slices are its several nodes.

Each process is one `gcloud … ssh` to its worker, attended as those of `ssh` are. When spot capacity is taken away, the resource is
made anew and the job goes on from its checkpoint, which lies in a folder that all workers mount.
"""

import contextlib
import dataclasses
import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from serving.command import ExitCode, UserError
from tools.launchers import checkout, programs, remote
from tools.launchers.gang import Gang
from tools.launchers.job import Job, on_topology
from tools.launchers.launcher import Finding, refuse_secrets_of
from tools.launchers.restarts import Ended
from tools.launchers.running import say
from tools.plan.chips import Topology
from trainer.distributed import jobs

_GCLOUD = ("gcloud", "compute", "tpus")
_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_KINDS = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
_CORES = {"v4": 2, "v5p": 2}  # by which these are counted, in place of chips
_QUOTAS = {
    "v4": r"v4",
    "v5e": r"v5 ?(s|e|lite)",
    "v5p": r"v5 ?p",
    "v6e": r"v6 ?e",
}  # in what a quota is called
# A type is a number of chips: which shape Google Cloud then gives, by its tables.
_SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
}
_COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_POLL_S = 15.0
_BUNDLE = "vitforge-code.tar.gz"
_INSTALL = "install it (cloud.google.com/sdk/docs/install)"


@dataclasses.dataclass(frozen=True)
class TpuVmLauncher(remote.CodeOnHosts):
    """One process on each worker of the slices."""

    project: Annotated[str, "project of Google Cloud"] = ""
    zone: Annotated[str, "zone of Google Cloud, such as us-east5-b"] = ""
    runtime_version: Annotated[str, "software of the VMs; empty: as the chip needs"] = ""
    spot: Annotated[bool, "take spot capacity, which costs less and may be taken away"] = False
    service_account: Annotated[str, "account that the pods, or the VMs, run as"] = ""
    keep: Annotated[bool, "leave the TPUs, which cost money, when the job has ended"] = False
    reuse: Annotated[bool, "run on TPUs of this name that are there, and leave them"] = False

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "kubernetes")
        if not job.topology:
            raise UserError("--backend=tpu_vm needs --topology=KIND:SHAPE, such as v5e:4x4")
        missing = [f"--{name}" for name in ("project", "zone") if not getattr(self, name)]
        if missing:
            raise UserError(f"--backend=tpu_vm needs {' and '.join(missing)}")
        _require_shape(job.topology)
        return on_topology(job)

    def render(self, job: Job) -> dict[str, str]:
        """Scripts that do by hand what `run` does; the first worker's address is asked for when it is there."""
        hosts = self._hosts(job)
        ask = shlex.join(
            (*self._describe(hosts.reach.nodes[0]), "--format=value(networkEndpoints[0].ipAddress)")
        )
        files = hosts.rendered(
            f"COORDINATOR:{job.port or jobs.PORT}", [f"address=$({ask})"], 'sed "s/COORDINATOR/$address/"'
        )
        state = shlex.join((*self._look(job.name), "--format=value(state.state)"))
        create = [
            f"{shlex.join(self._create(job))} || exit",
            f"until {state} | grep -q ACTIVE; do sleep 15; done",
        ]
        pack = f"{shlex.join(checkout.LISTED)} | tar --create --gzip --null --files-from=- --file={_BUNDLE}"
        fill = [
            shlex.join(words)
            for node in hosts.reach.nodes
            for words in self._fillings(job, hosts.reach, node)
        ]
        lines = [
            "#!/bin/sh",
            "# To be run in the root of the code.",
            *create,
            *([pack] if self.ship else []),
            *fill,
        ]
        files["create.sh"] = "\n".join(lines) + "\n"
        files["delete.sh"] = f"{shlex.join(self._delete(job.name))}\n"
        return files

    def doctor(self, job: Job) -> list[Finding]:
        if missing := programs.missing("gcloud", *(["git"] if self.ship else []), remedy=_INSTALL):
            return missing
        account = programs.run("gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)")
        if account.returncode or not account.stdout.strip():
            return [Finding("account of Google Cloud", "nobody is logged in", "gcloud auth login")]
        listed = programs.run(*_GCLOUD, "queued-resources", "list", *self._where(), "--format=json")
        if listed.returncode:
            remedy = "give a --project and --zone that you may use"
            return [Finding(f"TPUs in {self.zone}", programs.why_failed(listed), remedy)]
        kind = _accelerator(job)
        kinds = _gcloud(*_GCLOUD, "accelerator-types", "list", *self._where(), "--format=value(type)")
        if kind not in kinds.split():
            return [Finding(f"{kind} in {self.zone}", "is not offered there", "give another --zone")]
        return [
            Finding(f"account {account.stdout.strip()}"),
            Finding(f"{kind} in {self.zone}"),
            self._quota(job),
        ]

    def prepare(self, job: Job) -> None:
        programs.require_there("gcloud", remedy=_INSTALL)
        if self.ship:
            checkout.files()
        state = self._state(job.name)
        if self.reuse and state != "ACTIVE":
            raise UserError(
                f"--reuse: the queued resource {job.name} is {state or 'not there'}; without it one is made"
            )
        if self.reuse:
            self._fill(job)
        elif state:
            raise UserError(
                f"a queued resource {job.name} is there already ({state}); --reuse runs on it, or give another --name, or "
                f"delete it: {shlex.join(self._delete(job.name))}"
            )

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """Makes the TPUs where they are not there any more, or not yet, and runs the job on them, once."""
        if self._state(job.name) != "ACTIVE":
            self._make(job)
            self._fill(job)
        hosts = self._hosts(job)
        if silent := hosts.wait_until_reached(self.wait_s):
            return Ended(ExitCode.LOST_PEER, True, silent)
        described = _gcloud(*self._describe(hosts.reach.nodes[0]), "--format=json")
        address = json.loads(described)["networkEndpoints"][0]["ipAddress"]
        return Gang(job, hosts.members(f"{address}:{job.port or jobs.PORT}"), logs).run()

    def reached(self, job: Job) -> int | None:
        return self._hosts(job).reached()

    def release(self, job: Job) -> None:
        """Deletes the TPUs that were made for the job, unless they are to be kept."""
        if self.keep or self.reuse or not self._state(job.name):
            return
        done = programs.run(*self._delete(job.name))
        if done.returncode:
            raise UserError(
                f"the TPUs of {job.name} were not deleted and cost money ({programs.why_failed(done)}); run "
                f"{shlex.join(self._delete(job.name))}"
            )

    def _quota(self, job: Job) -> Finding:
        """Whether the project may have as many chips (cores, of v4 and v5p) there, by the names of its quotas."""
        assert job.topology
        kind = job.topology.chip.name
        listed = programs.run(
            *("gcloud", "beta", "quotas", "info", "list", "--service=tpu.googleapis.com"),
            *(f"--project={self.project}", "--format=json"),
        )
        what, needed = f"quota of {kind} in {self.zone}", job.topology.slices * _size(job.topology)
        if listed.returncode:
            return Finding(f"{what}: not told ({programs.why_failed(listed)})")
        allowed = _allowed(json.loads(listed.stdout), _QUOTAS[kind], self.zone, self.spot)
        if allowed is None:
            return Finding(f"{what}: none is named so; see the console's page of quotas")
        if allowed < needed:
            remedy = "ask for more on the console's page of quotas"
            return Finding(what, f"is {allowed}, and {needed} are asked for", remedy)
        return Finding(f"{what}: {allowed}, of which {needed} are asked for")

    def _make(self, job: Job) -> None:
        if self._state(job.name):
            # A resource that was suspended or failed does not come back.
            _gcloud(*self._delete(job.name))
        _gcloud(*self._create(job))
        begun_s, said = time.monotonic(), ""
        while (state := self._state(job.name)) in _COMING:
            if state != said:
                say(f"TPUs of {job.name}: {state}")
            said = state
            if time.monotonic() - begun_s > self.wait_s:
                raise UserError(
                    f"no TPUs within --wait_s={self.wait_s:g} ({state}); ask for fewer, for --spot or another --zone"
                )
            time.sleep(_POLL_S)
        if state != "ACTIVE":
            raise UserError(
                f"Google Cloud did not give the TPUs ({state or 'deleted'}); see the queued resource {job.name}"
            )

    def _fill(self, job: Job) -> None:
        """Ships the code to the workers, sets them up, and compares them."""
        hosts = self._hosts(job)
        with checkout.packed(_BUNDLE) if self.ship else contextlib.nullcontext(_BUNDLE) as bundle:
            for node in hosts.reach.nodes:
                for words in self._fillings(job, hosts.reach, node, bundle):
                    _gcloud(*words)
        hosts.require_versions()
        hosts.require_shared_workdir()

    def _fillings(
        self, job: Job, reach: "_Workers", node: str, bundle: str = _BUNDLE
    ) -> Iterator[tuple[str, ...]]:
        """The commands that bring code and set-up to the workers of a node."""
        folder = shlex.quote(reach.folder)
        if self.ship:
            yield (
                *_GCLOUD,
                "tpu-vm",
                "scp",
                bundle,
                f"{node}:{_BUNDLE}",
                *self._where(),
                "--worker=all",
                "--quiet",
            )
            unpack = f"mkdir -p {folder} && tar --extract --gzip --file={_BUNDLE} --directory={folder}"
            yield reach.line(node, "all", unpack)
        if self.setup:
            yield reach.line(node, "all", self.set_up_line(job))

    def _state(self, name: str) -> str:
        """Of the queued resource, "" where there is none."""
        done = programs.run(*self._look(name), "--format=json")
        if done.returncode:
            if "NOT_FOUND" in done.stderr or "not found" in done.stderr.lower():
                return ""
            raise UserError(f"gcloud does not answer: {programs.why_failed(done)}")
        return str(json.loads(done.stdout)["state"]["state"])

    def _create(self, job: Job) -> tuple[str, ...]:
        assert job.topology
        nodes = [f"--node-id={job.name}"]
        if job.topology.slices > 1:
            nodes = [f"--node-count={job.topology.slices}", f"--node-prefix={job.name}"]
        runtime = self.runtime_version or _RUNTIMES[job.topology.chip.name]
        more = [*(["--spot"] if self.spot else [])]
        more += [f"--service-account={self.service_account}"] if self.service_account else []
        kinds = (f"--accelerator-type={_accelerator(job)}", f"--runtime-version={runtime}")
        return (
            *_GCLOUD,
            "queued-resources",
            "create",
            job.name,
            *self._where(),
            *nodes,
            *kinds,
            *more,
            "--quiet",
        )

    def _look(self, name: str) -> tuple[str, ...]:
        return (*_GCLOUD, "queued-resources", "describe", name, *self._where())

    def _describe(self, node: str) -> tuple[str, ...]:
        return (*_GCLOUD, "tpu-vm", "describe", node, *self._where())

    def _delete(self, name: str) -> tuple[str, ...]:
        return (*_GCLOUD, "queued-resources", "delete", name, *self._where(), "--force", "--quiet")

    def _where(self) -> tuple[str, ...]:
        return f"--project={self.project}", f"--zone={self.zone}"

    def _hosts(self, job: Job) -> "_WorkerHosts":
        assert job.topology
        slices = job.topology.slices
        nodes = (job.name,) if slices == 1 else tuple(f"{job.name}-{index}" for index in range(slices))
        workers = _Workers(nodes, job.topology.hosts, self._where(), self.code_folder(job))
        return _WorkerHosts(job, workers)


@dataclasses.dataclass(frozen=True)
class _Workers:
    """The workers of the nodes by the number of their process: those of a slice follow each other."""

    nodes: tuple[str, ...]
    per_node: int
    where: tuple[str, ...]
    folder: str

    def host(self, index: int) -> str:
        return f"{self.nodes[index // self.per_node]} worker {index % self.per_node}"

    def shell(self, index: int, words: Sequence[str]) -> tuple[str, ...]:
        node, worker = divmod(index, self.per_node)
        return self.line(self.nodes[node], str(worker), shlex.join(words))

    def line(self, node: str, worker: str, text: str) -> tuple[str, ...]:
        """The command that runs a line of shell on a worker of a node, or on all."""
        return (
            *_GCLOUD,
            "tpu-vm",
            "ssh",
            node,
            *self.where,
            f"--worker={worker}",
            "--quiet",
            f"--command={text}",
        )


class _WorkerHosts(remote.Hosts):
    """Workers as the hosts of a job."""

    reach: _Workers


def _gcloud(*words: str) -> str:
    """The stdout of gcloud; raises as `programs.require` does, with the command without its flags."""
    return programs.require(*words, called=" ".join(words[:5]))


def _accelerator(job: Job) -> str:
    """As Google Cloud names a slice: v5litepod-16, or v4-16 by its cores."""
    assert job.topology
    return f"{_KINDS[job.topology.chip.name]}-{_size(job.topology)}"


def _size(topology: Topology) -> int:
    """Of one slice, as Google Cloud counts the kind: in cores or chips."""
    return topology.chips * _CORES.get(topology.chip.name, 1)


def _require_shape(topology: Topology) -> None:
    """Refuses a shape that is not the one which Google Cloud gives for so many chips.

    Raises:
      UserError: naming the shapes that it gives.
    """
    shapes = _SHAPES[topology.chip.dimensions]
    if topology.grid not in shapes:
        raise UserError(
            f"--topology={topology.chip.name}:{topology.grid}: a TPU VM is asked for by its number of chips, which come as "
            f"{', '.join(shapes)}; give one of these (GKE, --backend=jobset, takes others)"
        )


def _allowed(quotas: list[dict[str, Any]], name: str, zone: str, spot: bool) -> int | None:
    """The largest of the quotas whose names have the regular expression `name`, in a zone; None where there is none."""
    found = []
    for quota in quotas:
        called = f"{quota.get('quotaId', '')} {quota.get('quotaDisplayName', '')}".lower()
        if re.search(name, called) and ("preemptible" in called) == spot:
            found += [
                int(one["details"]["value"])
                for one in quota.get("dimensionsInfos", [])
                if zone in one.get("applicableLocations", []) and "value" in one.get("details", {})
            ]
    return max(found, default=None)
