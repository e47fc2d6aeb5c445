"""TPU VMs of Google Cloud, as a queued resource that this launcher makes, uses and deletes; several slices are its several nodes.

Each process is one `gcloud … ssh` to its worker, attended as those of `ssh` are. When spot capacity is taken away, the resource is
made anew and the job goes on from its checkpoint, which lies in a folder that all workers mount.
"""

import contextlib
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from serving.command import UserError
from tools.launchers import remote
from tools.launchers.gang import Gang
from tools.launchers.job import Job
from tools.launchers.jobset import on_topology
from tools.launchers.launcher import Finding, refuse_secrets_of
from tools.launchers.restarts import Ended
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
_COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_POLL_S = 15.0
_BUNDLE = "vitforge-code.tar.gz"


@dataclasses.dataclass(frozen=True)
class TpuVmLauncher:
    """One process on each worker of the slices."""

    project: Annotated[str, "of Google Cloud"] = ""
    zone: Annotated[str, "of Google Cloud, such as us-east5-b"] = ""
    runtime_version: Annotated[str, "software of the VMs; empty: as the chip needs"] = ""
    spot: Annotated[bool, "spot capacity, which costs less and may be taken away"] = False
    service_account: Annotated[str, "of the pods, or of the VMs"] = ""
    folder: Annotated[str, "of the code on the hosts, from the home folder; empty: vitforge/NAME"] = ""
    ship: Annotated[bool, "copy this checkout to the hosts"] = True
    setup: Annotated[
        str, "command that each worker runs once, in the folder of the code, such as 'make setup'"
    ] = ""
    wait_s: Annotated[float, "for capacity, or a host that was lost, at most"] = 3600.0
    keep: Annotated[bool, "leave the TPUs, which cost money, when the job has ended"] = False

    def placed(self, job: Job) -> Job:
        refuse_secrets_of(job, "kubernetes")
        if not job.topology:
            raise UserError("--backend=tpu_vm needs --topology=KIND:SHAPE, such as v5e:4x4")
        missing = [f"--{name}" for name in ("project", "zone") if not getattr(self, name)]
        if missing:
            raise UserError(f"--backend=tpu_vm needs {' and '.join(missing)}")
        return on_topology(job)

    def render(self, job: Job) -> dict[str, str]:
        """Workers have no addresses before they are there: COORDINATOR stands for the first one's."""
        reach = self._reach(job)
        steps = [self._create(job)]
        if self.ship:
            for node in reach.nodes:
                steps += [reach.copy(node), reach.on_all(node, self._unpack(job))]
        if self.setup:
            steps += [reach.on_all(node, self._set_up(job)) for node in reach.nodes]
        files = remote.rendered(job, reach, f"COORDINATOR:{job.port or jobs.PORT}")
        files["create.sh"] = "".join(f"{shlex.join(words)}\n" for words in steps)
        files["delete.sh"] = f"{shlex.join(self._delete(job.name))}\n"
        return files

    def doctor(self, job: Job) -> list[Finding]:
        if not shutil.which("gcloud"):
            return [
                Finding(
                    "program gcloud",
                    "is not on this machine",
                    "install it (cloud.google.com/sdk/docs/install)",
                )
            ]
        account = self._run("gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)")
        if account.returncode or not account.stdout.strip():
            return [Finding("account of Google Cloud", "nobody is logged in", "gcloud auth login")]
        listed = self._run(*_GCLOUD, "queued-resources", "list", *self._where(), "--format=json")
        if listed.returncode:
            return [
                Finding(
                    f"TPUs in {self.zone}",
                    _last(listed.stderr),
                    "give a --project and --zone that you may use",
                )
            ]
        kinds = self._run(*_GCLOUD, "accelerator-types", "list", *self._where(), "--format=value(type)")
        kind = _accelerator(job)
        if kind not in kinds.stdout.split():
            return [Finding(f"{kind} in {self.zone}", "is not offered there", "give another --zone")]
        return [Finding(f"account {account.stdout.strip()}"), Finding(f"{kind} in {self.zone}")]

    def prepare(self, job: Job) -> None:
        if not shutil.which("gcloud"):
            raise UserError("gcloud is not on this machine; install it (cloud.google.com/sdk/docs/install)")
        if self.ship:
            remote.require_checkout()

    def attempt(self, job: Job, logs: Path | None) -> Ended:
        """Makes the TPUs where they are not there, and runs the job on them, once."""
        reach = self._reach(job)
        if self._state(job.name) != "ACTIVE":
            self._make(job)
            self._fill(job, reach)
        return Gang(job, remote.members(job, reach, self._coordinator(job, reach)), logs).run()

    def release(self, name: str) -> None:
        """Deletes the TPUs, unless they are to be kept."""
        if self.keep or not self._state(name):
            return
        done = self._run(*self._delete(name))
        if done.returncode:
            raise UserError(
                f"the TPUs of {name} were not deleted and cost money ({_last(done.stderr)}); run {shlex.join(self._delete(name))}"
            )

    def _make(self, job: Job) -> None:
        if self._state(job.name):
            self._require(
                *self._delete(job.name)
            )  # a resource that was suspended or failed does not come back
        self._require(*self._create(job))
        begun_s, said = time.monotonic(), ""
        while (state := self._state(job.name)) in _COMING:
            if state != said:
                print(f"[launch] TPUs of {job.name}: {state}", file=sys.stderr, flush=True)
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

    def _fill(self, job: Job, reach: "_Workers") -> None:
        """Ships the code to the workers, and sets them up."""
        if self.ship:
            with _bundle() as bundle:
                for node in reach.nodes:
                    self._require(*reach.copy(node, str(bundle)))
                    self._require(*reach.on_all(node, self._unpack(job)))
        if self.setup:
            for node in reach.nodes:
                self._require(*reach.on_all(node, self._set_up(job)))
        remote.require_answers(job, reach)
        remote.require_shared_workdir(job, reach)

    def _coordinator(self, job: Job, reach: "_Workers") -> str:
        said = self._require(*_GCLOUD, "tpu-vm", "describe", reach.nodes[0], *self._where(), "--format=json")
        return f"{json.loads(said)['networkEndpoints'][0]['ipAddress']}:{job.port or jobs.PORT}"

    def _state(self, name: str) -> str:
        """Of the queued resource, "" where there is none."""
        done = self._run(*_GCLOUD, "queued-resources", "describe", name, *self._where(), "--format=json")
        if done.returncode:
            if "NOT_FOUND" in done.stderr or "not found" in done.stderr.lower():
                return ""
            raise UserError(f"gcloud does not answer: {_last(done.stderr)}")
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

    def _delete(self, name: str) -> tuple[str, ...]:
        return (*_GCLOUD, "queued-resources", "delete", name, *self._where(), "--force", "--quiet")

    def _unpack(self, job: Job) -> str:
        folder = shlex.quote(self._folder(job))
        return f"mkdir -p {folder} && tar --extract --gzip --file={_BUNDLE} --directory={folder}"

    def _set_up(self, job: Job) -> str:
        return f"cd {shlex.quote(self._folder(job))} && {self.setup}"

    def _folder(self, job: Job) -> str:
        return self.folder or f"vitforge/{job.name}"

    def _where(self) -> tuple[str, ...]:
        return f"--project={self.project}", f"--zone={self.zone}"

    def _reach(self, job: Job) -> "_Workers":
        assert job.topology
        slices = job.topology.slices
        nodes = (job.name,) if slices == 1 else tuple(f"{job.name}-{index}" for index in range(slices))
        return _Workers(nodes, job.topology.hosts, self._where(), self._folder(job))

    def _require(self, *words: str) -> str:
        done = self._run(*words)
        if done.returncode:
            raise UserError(f"{' '.join(words[:5])} failed: {_last(done.stderr)}")
        return done.stdout

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


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
        return self._ssh(self.nodes[index // self.per_node], str(index % self.per_node), shlex.join(words))

    def on_all(self, node: str, line: str) -> tuple[str, ...]:
        """The command that runs a line of shell on every worker of a node."""
        return self._ssh(node, "all", line)

    def copy(self, node: str, bundle: str = _BUNDLE) -> tuple[str, ...]:
        """The command that copies the packed code to every worker of a node."""
        return (
            *_GCLOUD,
            "tpu-vm",
            "scp",
            bundle,
            f"{node}:{_BUNDLE}",
            *self.where,
            "--worker=all",
            "--quiet",
        )

    def _ssh(self, node: str, worker: str, line: str) -> tuple[str, ...]:
        return (
            *_GCLOUD,
            "tpu-vm",
            "ssh",
            node,
            *self.where,
            f"--worker={worker}",
            "--quiet",
            f"--command={line}",
        )


def _accelerator(job: Job) -> str:
    """As Google Cloud names a slice: v5litepod-16, or v4-16 by its cores."""
    assert job.topology
    kind = job.topology.chip.name
    return f"{_KINDS[kind]}-{job.topology.chips * _CORES.get(kind, 1)}"


@contextlib.contextmanager
def _bundle() -> Any:
    """This checkout's files that git knows or would add, packed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=remote.CODE,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        raise UserError(
            f"git does not say what belongs to {remote.CODE}: {_last(listed.stderr)}; install git, or give --noship"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _BUNDLE
        with tarfile.open(path, "w:gz") as bundle:
            for name in filter(None, listed.stdout.split("\0")):
                if (remote.CODE / name).exists():
                    bundle.add(remote.CODE / name, name, recursive=False)
        yield path


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
