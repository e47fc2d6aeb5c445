"""Which job this process belongs to: as a launcher says, or as Slurm, Kubernetes or a TPU slice do."""

import dataclasses
import importlib.util
import os
import re
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serving.command import UserError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "VITFORGE_COORDINATOR",
    "VITFORGE_NUM_PROCESSES",
    "VITFORGE_PROCESS_ID",
)
PORT, OWN_PORT = 8476, "VITFORGE_PORT"  # of the coordinator, where no launcher chose one
NUM_SLICES, SLICE = "VITFORGE_NUM_SLICES", "VITFORGE_SLICE"  # of a job whose slices are Kubernetes Jobs
RUN = "VITFORGE_RUN"  # tells one submission of a job from another, each of which may start several times
PORT_HELD = "VITFORGE_PORT_HELD"  # set by a launcher that keeps the port bound, and does not listen
_POD_INDEX = "JOB_COMPLETION_INDEX"  # Kubernetes sets it in every pod of an indexed Job
_FEW = 20  # processes in a message
_METADATA = "http://{host}/computeMetadata/v1/instance/attributes/{key}"

Attribute = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Job:
    """Where the processes of a job meet, how many there are, and which one this is.

    `name` tells it from others that meet at the same port of a host; `port_is_held` says that a launcher keeps the port for it.
    """

    coordinator: str
    count: int
    index: int
    name: str = ""
    port_is_held: bool = False


def named(processes: Sequence[int]) -> str:
    """Process 3, or processes 1, 4, 5 and 12 more, in a message."""
    first = ", ".join(map(str, processes[:_FEW]))
    more = f" and {len(processes) - _FEW} more" if len(processes) > _FEW else ""
    return f"process{'' if len(processes) == 1 else 'es'} {first}{more}"


def job_of(environment: Mapping[str, str], attribute: Attribute | None = None) -> Job | None:
    """The job that the environment names: our own variables, a Slurm step of several tasks, or TPU slices of several hosts.

    `attribute` asks a TPU VM's metadata; None where this is no TPU VM.

    Raises:
      UserError: when our own variables are incomplete, or hold no numbers.
    """
    return _own(environment) or _slurm(environment) or _tpu(environment, attribute)


def _own(environment: Mapping[str, str]) -> Job | None:
    """As our launcher says; pods of Kubernetes Jobs share their variables, and are told apart by completion index and slice."""
    names = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    present = [name for name in names if name in environment]
    if not present:
        return None
    index = PROCESS_ID if PROCESS_ID in environment else _POD_INDEX
    if not {COORDINATOR, NUM_PROCESSES, index} <= environment.keys():
        raise UserError(
            f"of {', '.join(names)} only {', '.join(present)} is set; set all or none ({PROCESS_ID} may be left to "
            f"Kubernetes' {_POD_INDEX})"
        )
    count, number = _whole(environment, NUM_PROCESSES), _whole(environment, index)
    if index == _POD_INDEX and SLICE in environment:
        number += _whole(environment, SLICE) * (count // _whole(environment, NUM_SLICES))
    if not re.fullmatch(r".+:\d+", environment[COORDINATOR]):
        raise UserError(
            f"{COORDINATOR}={environment[COORDINATOR]!r} must be HOST:PORT, such as host-0:{PORT}"
        )
    if number >= count:
        raise UserError(
            f"{index}={number} must be below {NUM_PROCESSES}={count}; processes are numbered from 0"
        )
    return Job(environment[COORDINATOR], count, number, port_is_held=PORT_HELD in environment)


def _slurm(environment: Mapping[str, str]) -> Job | None:
    """As `srun` starts the tasks of a step; an allocation without a step is no job."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    count = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
    if not nodes or count < 2:
        return None
    name = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return Job(f"{first_host(nodes)}:{_port(environment)}", count, int(environment["SLURM_PROCID"]), name)


def first_host(nodes: str) -> str:
    """The first of a Slurm node list: node[003-007,9] is node003."""
    found = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?([^,]*)", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} names no host")
    inside = re.match(r"[^,\-]+", found[2]) if found[2] else None
    return found[1] + (inside[0] if inside else "") + (found[3] or "")


def _tpu(environment: Mapping[str, str], attribute: Attribute | None) -> Job | None:
    """As GKE names the hosts of TPU slices in the environment, and a TPU VM's metadata does; several slices follow each other."""
    told = environment
    if "TPU_WORKER_HOSTNAMES" not in environment and attribute is not None:
        told = {**_of_metadata(attribute), **environment}
    hosts = [host for host in told.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = int(told.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * slices < 2 or "TPU_WORKER_ID" not in told:
        return None
    first = told.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    index = int(told.get("MEGASCALE_SLICE_ID") or 0) * len(hosts) + int(told["TPU_WORKER_ID"])
    return Job(f"{first.partition(':')[0]}:{_port(environment)}", len(hosts) * slices, index)


def _of_metadata(attribute: Attribute) -> dict[str, str]:
    """What GKE has in the environment, from the metadata of a TPU VM: endpoints are hosts, or NAME:ID:HOST."""
    endpoints = [endpoint.split(":")[-1] for endpoint in attribute("worker-network-endpoints").split(",")]
    lines = re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)'?\s*$", attribute("tpu-env"), re.MULTILINE)
    workers = {"TPU_WORKER_HOSTNAMES": ",".join(endpoints), "TPU_WORKER_ID": attribute("agent-worker-number")}
    return {**workers, **dict(lines)}


def metadata() -> Attribute | None:
    """Asks the metadata server of this TPU VM; None on any other machine, and where TPU_SKIP_MDS_QUERY is set."""
    devices = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    if os.environ.get("TPU_SKIP_MDS_QUERY") or not devices or importlib.util.find_spec("libtpu") is None:
        return None
    return ask_metadata


def ask_metadata(key: str) -> str:
    """One attribute of the instance.

    Raises:
      UserError: when the server does not answer.
    """
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        _METADATA.format(host=host, key=key), headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError as error:
        raise UserError(
            f"this TPU VM's metadata has no {key} ({error}), so the other hosts of its slice are not known; set {COORDINATOR}, "
            f"{NUM_PROCESSES} and {PROCESS_ID}, or TPU_SKIP_MDS_QUERY=1 to run alone"
        ) from error


def _port(environment: Mapping[str, str]) -> int:
    return _whole(environment, OWN_PORT) if OWN_PORT in environment else PORT


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is no whole number; the launcher sets it, or unset it to run alone")
    return int(text)
