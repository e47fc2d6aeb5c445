"""Errors become gRPC codes in one place, and what is our own fault says nothing of our insides."""

import asyncio
import inspect
import logging

import grpc
import pytest

from serving import errors, preprocess
from serving.service import status

TABLE = [
    (errors.ModelNotFound("no model 'x'"), grpc.StatusCode.NOT_FOUND),
    (errors.InvalidInput("bad\nshape"), grpc.StatusCode.INVALID_ARGUMENT),
    (preprocess.ImageError("no image"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.ShuttingDown("stopping"), grpc.StatusCode.UNAVAILABLE),
]


@pytest.mark.parametrize(("error", "code"), TABLE)
def test_what_a_caller_can_act_on_keeps_its_message_in_one_line(
    error: Exception, code: grpc.StatusCode
) -> None:
    assert status.status_of(error) == (code, str(error).replace("\n", " "))


def test_every_serving_error_has_a_code() -> None:
    leaves = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServingError) and kind is not errors.ServingError
    }
    assert leaves == {type(error) for error, _ in TABLE} - {preprocess.ImageError}


def test_an_internal_error_tells_the_caller_an_id_and_the_log_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        code, message = status.status_of(RuntimeError("secret path /models/x"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message
    fault = message.split()[2].rstrip(":")
    assert f"internal error {fault}" in caplog.text
    assert "secret path /models/x" in caplog.text


class AbortedError(Exception):
    """What `abort` raises in place of grpc's own."""


class Context:
    """Remembers with what a call was aborted."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise AbortedError(code, details)


class Service:
    """A servicer that does what its request says."""

    @status.answers_with_status
    async def Answer(self, request: BaseException | str, context: Context) -> str:  # noqa: N802
        if isinstance(request, BaseException):
            raise request
        return request


def test_a_method_that_raises_aborts_its_call_and_one_that_answers_does_not() -> None:
    assert asyncio.run(Service().Answer("fine", Context())) == "fine"
    with pytest.raises(AbortedError) as aborted:
        asyncio.run(Service().Answer(errors.Overloaded("full"), Context()))
    assert aborted.value.args == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


def test_cancellation_passes_through() -> None:
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Service().Answer(asyncio.CancelledError(), Context()))
