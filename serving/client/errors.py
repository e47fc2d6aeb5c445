"""What can go wrong for a client, as a tree; catch at the level at which you can act.

    ClientError
    ├── Invalid       the request, or a file it names, is wrong: change it
    ├── NotFound      no such model or version: the message names what exists
    ├── Overloaded    the server has more work than it takes: wait, then try again
    ├── TimedOut      no answer in time
    ├── Unavailable   nobody answers at that address, or the server shuts down: try another one, or later
    └── ServerFault   a fault on the server's side: its log has the details under the id in the message

Every message is one line.
"""

import grpc

from serving.command import UserError


class ClientError(UserError):
    """A call that has no answer; the message says why, in one line. A command that does not catch it ends with that line."""


class Invalid(ClientError):
    """The request, or a file that it names, is wrong."""


class NotFound(ClientError):
    """The server has no such model or version."""


class Overloaded(ClientError):
    """The server's queue is full, or the message is larger than it takes."""


class TimedOut(ClientError):
    """The answer did not come in time."""


class Unavailable(ClientError):
    """Nobody answers at the address, or the server shuts down."""


class ServerFault(ClientError):
    """Something failed on the server's side."""


_BY_CODE: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # We cancel nothing, so it was a server that closed under the call.
    grpc.StatusCode.CANCELLED: Unavailable,
}


def from_call(error: grpc.RpcError, target: str) -> ClientError:
    """The client's error for a failed call to `target`."""
    code = error.code()
    kind = _BY_CODE.get(code, ServerFault)
    details = " ".join((error.details() or "no details").split())
    if kind is Unavailable:
        return Unavailable(
            f"no answer from {target}: {details}; check the address, and that the server is up"
        )
    if kind is TimedOut:
        return TimedOut(f"{target} did not answer in time: {details}")
    if kind is ServerFault:
        return ServerFault(f"{target} answered {code.name}: {details}")
    return kind(details)
