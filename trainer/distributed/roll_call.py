"""All processes of a job meet at the coordinator's address before JAX does, so that whoever does not come can be named.

JAX's own start ends a process that waits too long by a signal, and says of nobody who was missing. Process 0 listens, the others
give their number, and all hear together that everybody is there, or who is not. Then the address is free for JAX.
"""

import json
import socket
import time
from typing import Any

from trainer.distributed.jobs import Job, named

_RETRY_S = 0.2
_LISTENS_S = 5.0  # to one that has called


class MissingError(Exception):
    """Not everybody came in time; the message says who."""


def roll_call(job: Job, timeout_s: float) -> None:
    """Returns in every process once all of the job have called.

    Raises:
      MissingError: in every process that has called, when some have not within `timeout_s`; or when process 0 cannot be reached.
      OSError: in process 0, when another job listens at the address.
    """
    deadline_s = time.monotonic() + timeout_s
    if job.index == 0:
        _receive(job, deadline_s, timeout_s)
    else:
        _report(job, deadline_s, timeout_s)


def _receive(job: Job, deadline_s: float, timeout_s: float) -> None:
    """Process 0: hears of the others, and tells them all what came of it."""
    calls: dict[int, socket.socket] = {}
    port, count = int(job.coordinator.rpartition(":")[2]), job.count
    # A launcher that holds the port has it bound, and does not listen.
    with socket.create_server(("", port), reuse_port=job.port_is_held) as server:
        while len(calls) < count - 1:
            server.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                call, _ = server.accept()
            except TimeoutError:
                break
            number = _number(call, job)
            if number is None:
                call.close()  # somebody else's, or one that broke off: its process calls again
            else:
                calls[number] = call
        missing = sorted(set(range(1, count)) - calls.keys())
        problem = (
            f"{named(missing)} of {count} did not come within {timeout_s:g} s; see what their logs say"
            if missing
            else ""
        )
        for call in calls.values():
            with call:
                call.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    if problem:
        raise MissingError(problem)


def _number(call: socket.socket, job: Job) -> int | None:
    """Which process calls; None where none of the job does."""
    call.settimeout(_LISTENS_S)
    try:
        with call.makefile("rb") as said:
            heard = json.loads(said.readline())
            number, name = int(heard["process"]), heard["job"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return number if 0 < number < job.count and name == job.name else None


def _report(job: Job, deadline_s: float, timeout_s: float) -> None:
    """The others: say that they are there, and hear whether all are."""
    host, _, port = job.coordinator.rpartition(":")
    while True:
        try:
            with socket.create_connection(
                (host, int(port)), timeout=max(0.01, deadline_s - time.monotonic())
            ) as call:
                call.sendall(json.dumps({"process": job.index, "job": job.name}).encode() + b"\n")
                # Process 0 keeps the time; what it says comes a little later than that.
                call.settimeout(timeout_s + 5)
                with call.makefile("rb") as said:
                    answer: Any = json.loads(said.readline())
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline_s:
                raise MissingError(
                    f"process 0 cannot be reached at {host}:{port} within {timeout_s:g} s ({error}); it may be missing, or a "
                    "firewall may close the port"
                ) from error
            time.sleep(_RETRY_S)
            continue
        if answer["problem"]:
            raise MissingError(answer["problem"])
        return
