"""The only place where an error becomes a gRPC status.

What a client can act on travels as it is. Anything else is our fault: the client gets an id, the log gets the id and the traceback,
and no internal text leaves the process.
"""

import functools
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

from serving.errors import DeadlineExceeded, InvalidInput, ModelNotFound, Overloaded, ShuttingDown
from serving.preprocess import ImageError

log = logging.getLogger(__name__)

Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Response = TypeVar("Response")
Method = Callable[[Servicer, Request, Any], Coroutine[Any, Any, Response]]

_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the one-line message with which a call that raised `error` ends."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code, " ".join(str(error).split())
    fault = uuid.uuid4().hex[:8]
    log.error("internal error %s", fault, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {fault}: the server's log has the details"


def answers_with_status(method: Method[Servicer, Request, Response]) -> Method[Servicer, Request, Response]:
    """An RPC method whose exceptions end the call with the status that they map to. Cancellation passes through."""

    @functools.wraps(method)
    async def call(self: Servicer, request: Request, context: Any) -> Response:
        try:
            return await method(self, request, context)
        except Exception as error:
            code, message = status_of(error)
            await context.abort(code, message)
            raise AssertionError("abort raises") from error

    return call
