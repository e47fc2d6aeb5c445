"""Joining a job: what the environment says, and the roll call of its processes."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from serving.command import ExitCode, UserError
from tests.support.trainings import ROOT
from trainer.distributed.jobs import Job, ask_metadata, first_host, job_of
from trainer.distributed.roll_call import MissingError, roll_call

SLURM = {
    "SLURM_STEP_NODELIST": "node[003-007,9]",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_PROCID": "4",
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
}
TPU = {"TPU_WORKER_HOSTNAMES": "10.0.0.2,10.0.0.3", "TPU_WORKER_ID": "1"}
SLICE_1_OF_2 = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-slice-0-0.job:8080",
}
POD = {"VITFORGE_COORDINATOR": "job-0.job:8476", "VITFORGE_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
OWN = {"VITFORGE_COORDINATOR": "a:1", "VITFORGE_NUM_PROCESSES": "2", "VITFORGE_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        (OWN, Job("a:1", 2, 0)),
        (OWN | {"VITFORGE_PORT_HELD": "1"}, Job("a:1", 2, 0, "", True)),
        (SLURM, Job("node003:8476", 6, 4, "17.0")),
        (SLURM | {"VITFORGE_PORT": "9000"}, Job("node003:9000", 6, 4, "17.0")),
        (SLURM | OWN, Job("a:1", 2, 0)),  # our launcher knows better
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # an allocation, and no step
        (TPU, Job("10.0.0.2:8476", 2, 1)),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (TPU | SLICE_1_OF_2, Job("job-slice-0-0.job:8476", 4, 3)),
        (
            TPU | SLICE_1_OF_2 | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
            Job("job-slice-0-0.job:8476", 2, 1),
        ),
        (POD, Job("job-0.job:8476", 4, 3)),
        (POD | {"VITFORGE_PROCESS_ID": "1"}, Job("job-0.job:8476", 4, 1)),
        ({"JOB_COMPLETION_INDEX": "3"}, None),  # an indexed Job of something else
    ],
)
def test_the_job_is_the_one_that_the_environment_names(environment: dict[str, str], job: Job | None) -> None:
    assert job_of(environment) == job


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"VITFORGE_PROCESS_ID": "0"}, "only VITFORGE_PROCESS_ID is set; set all or none"),
        ({"JOB_COMPLETION_INDEX": "3", "VITFORGE_COORDINATOR": "a:1"}, "only VITFORGE_COORDINATOR is set"),
        (OWN | {"VITFORGE_NUM_PROCESSES": "two"}, "VITFORGE_NUM_PROCESSES='two' is no whole number"),
        (OWN | {"VITFORGE_PROCESS_ID": "2"}, "VITFORGE_PROCESS_ID=2 must be below VITFORGE_NUM_PROCESSES=2"),
        (OWN | {"VITFORGE_COORDINATOR": "localhost"}, "VITFORGE_COORDINATOR='localhost' must be HOST:PORT"),
    ],
)
def test_variables_that_are_incomplete_or_no_numbers_are_refused(
    environment: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        job_of(environment)


# As a TPU VM's metadata server has them; the older form of an endpoint is NAME:ID:HOST.
ATTRIBUTES = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'\n",
}


class _Metadata(http.server.BaseHTTPRequestHandler):
    """A stand-in for the metadata server of a TPU VM, which refuses those that do not say that they mean it."""

    def do_GET(self) -> None:
        value = ATTRIBUTES.get(self.path.rpartition("/")[2])
        known = value is not None and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write((value or "").encode() if known else b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def _metadata_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("localhost", 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_IP", f"localhost:{server.server_address[1]}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("_metadata_server")
def test_a_tpu_vm_asks_its_metadata_for_what_the_environment_does_not_say() -> None:
    assert job_of({}, ask_metadata) == Job("10.0.0.9:8476", 4, 3)
    assert job_of(OWN, ask_metadata) == Job("a:1", 2, 0)
    assert job_of(TPU, ask_metadata) == Job("10.0.0.2:8476", 2, 1)
    with pytest.raises(UserError, match=r"metadata has no colour .*404.* VITFORGE_NUM_PROCESSES"):
        ask_metadata("colour")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[3-7]", "n3"),
        ("n[07,9-11],m2", "n07"),
        ("rack-1-n[2,4]-ib", "rack-1-n2-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.fixture
def address() -> str:
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def call_of(address: str, count: int, present: list[int], timeout_s: float) -> dict[int, str]:
    """What each of the present processes hears: nothing, or who is missing."""
    heard: dict[int, str] = {}

    def one(index: int) -> Callable[[], None]:
        def run() -> None:
            try:
                roll_call(Job(address, count, index, "job 1", True), timeout_s)
                heard[index] = ""
            except MissingError as error:
                heard[index] = str(error)

        return run

    threads = [threading.Thread(target=one(index)) for index in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_all_go_on_when_all_are_there_and_the_address_is_free_again(address: str) -> None:
    assert call_of(address, 4, [2, 0, 3, 1], 60) == dict.fromkeys(range(4), "")
    assert call_of(address, 2, [1, 0], 60) == {0: "", 1: ""}


def test_all_hear_who_is_missing(address: str) -> None:
    heard = call_of(address, 5, [0, 3], 1.0)
    assert set(heard.values()) == {"processes 1, 2, 4 of 5 did not come within 1 s; see what their logs say"}
    assert set(heard) == {0, 3}


def test_without_process_0_the_others_say_so(address: str) -> None:
    (said,) = call_of(address, 2, [1], 0.5).values()
    assert said.startswith(f"process 0 cannot be reached at {address} within 0.5 s")


def test_calls_of_strangers_are_not_counted(address: str) -> None:
    host, _, port = address.rpartition(":")
    heard: dict[int, str] = {}
    waits = threading.Thread(target=lambda: heard.update(call_of(address, 2, [0], 60)))
    waits.start()
    for content in (
        b"GET / HTTP/1.1\n",
        b'{"process": 7, "job": "job 1"}\n',
        b'{"process": 1, "job": "job 2"}\n',
        b"",
    ):
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=5) as stranger:
                    stranger.sendall(content)
                break
            except ConnectionRefusedError:
                continue  # it does not listen yet
    assert call_of(address, 2, [1], 60) == {1: ""}
    waits.join()
    assert heard == {0: ""}


def first_of_two(address: str) -> tuple[int, str]:
    """Exit code and last line of a training that is process 0 of 2 at `address`, and waits a second for the other."""
    environment = {
        **os.environ,
        "VITFORGE_COORDINATOR": address,
        "VITFORGE_NUM_PROCESSES": "2",
        "VITFORGE_PROCESS_ID": "0",
        "VITFORGE_START_TIMEOUT_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "trainer.main", "--config=configs/digits.py", "--workdir=runs/never"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_command_that_waits_in_vain_ends_with_the_name_of_who_is_missing(address: str) -> None:
    assert first_of_two(address) == (
        ExitCode.LOST_PEER,
        "error: process 0 of 2: process 1 of 2 did not come within 1 s; see what their logs say",
    )


def test_a_port_that_another_job_listens_at_is_said_at_once() -> None:
    with socket.create_server(("", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        code, last = first_of_two(address)
    assert code == ExitCode.LOST_PEER
    assert last.startswith(f"error: process 0 of 2 cannot listen at {address} ")
    assert last.endswith("if another job does, give this one another port with VITFORGE_PORT")
