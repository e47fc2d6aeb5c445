"""All processes of a job meet at the coordinator's address before JAX does, so that whoever does not come can be named.

JAX's own start ends a process that waits too long by a signal, and says of nobody who was missing. Process 0 listens, the others
give their number, and all hear together that everybody is there, or who is not. Then the address is free for JAX.
"""

import json
import socket
import time
from typing import Any

_RETRY_S = 0.2
_LISTENS_S = 5.0  # to one that has called


class MissingError(Exception):
    """Not everybody came in time; the message says who."""


def roll_call(address: str, count: int, index: int, timeout_s: float) -> None:
    """Returns in every process once all `count` have called.

    Raises:
      MissingError: in every process that has called, when some have not within `timeout_s`; or when process 0 cannot be reached.
    """
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + timeout_s
    if index == 0:
        _receive(int(port), count, deadline_s, timeout_s)
    else:
        _report(host, int(port), index, deadline_s, timeout_s)


def _receive(port: int, count: int, deadline_s: float, timeout_s: float) -> None:
    """Process 0: hears of the others, and tells them all what came of it."""
    calls: dict[int, socket.socket] = {}
    # A launcher may hold the port for the job, bound and not listening.
    with socket.create_server(("", port), reuse_port=True) as server:
        while len(calls) < count - 1:
            server.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                call, _ = server.accept()
            except TimeoutError:
                break
            number = _number(call, count)
            if number is None:
                call.close()  # somebody else's, or one that broke off: its process calls again
            else:
                calls[number] = call
        missing = sorted(set(range(1, count)) - calls.keys())
        problem = _missing(missing, count, timeout_s) if missing else ""
        for call in calls.values():
            with call:
                call.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    if problem:
        raise MissingError(problem)


def _number(call: socket.socket, count: int) -> int | None:
    """Which process calls; None where none of the job does."""
    call.settimeout(_LISTENS_S)
    try:
        with call.makefile("rb") as said:
            number = int(json.loads(said.readline())["process"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return number if 0 < number < count else None


def _report(host: str, port: int, index: int, deadline_s: float, timeout_s: float) -> None:
    """The others: say that they are there, and hear whether all are."""
    while True:
        try:
            with socket.create_connection(
                (host, port), timeout=max(0.01, deadline_s - time.monotonic())
            ) as call:
                call.sendall(json.dumps({"process": index}).encode() + b"\n")
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


def _missing(missing: list[int], count: int, timeout_s: float) -> str:
    names = ", ".join(map(str, missing[:20])) + (
        f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    )
    which = "process" if len(missing) == 1 else "processes"
    return f"{which} {names} of {count} did not come within {timeout_s:g} s; see what their logs say"
