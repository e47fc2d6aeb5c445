"""When another process of the job is gone, this one ends at once, and says so: there is nothing that it could still do."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from serving.command import ExitCode

# How gloo, the TPUs' network and the coordination service say it.
_SIGNS = (
    "gloo",
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "coordination service",
    "heartbeat",
    "barrier",
    "unavailable",
)


@contextlib.contextmanager
def ending_without_peers() -> Iterator[None]:
    """Around a run: ends the process with code 44 when an error inside says that others cannot be reached."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _is_loss(str(error)):
            raise
        reason = " ".join(str(error).split())[:200]
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost another one ({reason}); see what the logs of the "
            "others say; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(ExitCode.LOST_PEER)  # an orderly end would wait for the one that is gone


def _is_loss(message: str) -> bool:
    said = message.lower()
    return any(sign in said for sign in _SIGNS)
