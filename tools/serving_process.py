"""A server as a process of its own, for commands that measure what it answers."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.command import ExitCode, UserError
from tools.stop_requests import StopRequests, start

_DRAIN_S = 60


@contextmanager
def serving(repository: Path, stop: StopRequests, *options: str) -> Iterator[str]:
    """A server on `repository`, a process of its own on a free port; its address, once it is ready; drained at the end."""
    arguments = [
        *("-m", "serving.main", f"--model_repository={repository}", "--host=127.0.0.1", "--port=0"),
        *options,
    ]
    print(f"\n== serve\n   python {' '.join(arguments)}", file=sys.stderr, flush=True)
    server = None
    try:
        with stop.deferred():  # from its first moment on it is known here, and ended below
            server = start([sys.executable, *arguments])
        line = server.stdout.readline() if server.stdout else ""
        if not line:
            raise UserError(
                "the server ended before it was ready; its own message stands above", ExitCode.BUG
            )
        yield f"127.0.0.1:{json.loads(line)['port']}"
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=_DRAIN_S)  # reads its last words, or it would end on a broken pipe
