"""Real processes for tests: a server on a free port, and commands that run to their end."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# A process that says nothing for so long is killed, so that a test ends rather than hangs. Starting takes about two seconds.
PATIENCE_S = 120.0

# Runs a module as `python -m` does, with the packages in the first argument made impossible to import.
_WITHOUT = """
import runpy, sys
blocked, module = set(sys.argv[1].split(",")), sys.argv[2]

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked in this process", name=name)

sys.meta_path.insert(0, Block())
del sys.argv[1:3]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def command_line(module: str, *arguments: str, without: Sequence[str] = ()) -> list[str]:
    """The command that runs `module` with `arguments`, in a process that cannot import the packages `without`."""
    if without:
        return [sys.executable, "-c", _WITHOUT, ",".join(without), module, *arguments]
    return [sys.executable, "-m", module, *arguments]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, the lines of its stdout, and its stderr."""

    code: int
    lines: list[str]
    errors: str

    @property
    def result(self) -> Any:
        """The JSON object on the last line of stdout."""
        return json.loads(self.lines[-1])


def run(module: str, *arguments: str, without: Sequence[str] = (), patience_s: float = PATIENCE_S) -> Ended:
    """Runs a command to its end, which must come within `patience_s`."""
    ended = subprocess.run(
        command_line(module, *arguments, without=without),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience_s,
    )
    return Ended(ended.returncode, ended.stdout.splitlines(), ended.stderr)


class ServerProcess:
    """A running `python -m serving.main`."""

    def __init__(self, process: "subprocess.Popen[str]", errors: Path) -> None:
        """Waits until the server takes calls."""
        self._process = process
        self._errors = errors
        assert process.stdout is not None
        self._stdout = process.stdout
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        try:
            line = self._stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"the server ended before it was ready:\n{self.errors()}"
        self.ready = json.loads(line)

    @property
    def target(self) -> str:
        """HOST:PORT of the server."""
        return f"127.0.0.1:{self.ready['port']}"

    def errors(self) -> str:
        """What the server has written to stderr so far."""
        return self._errors.read_text()

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends the signal, and does not wait."""
        self._process.send_signal(number)

    def wait(self) -> Ended:
        """Waits for the end, which somebody has asked for."""
        out, _ = self._process.communicate(timeout=PATIENCE_S)
        return Ended(self._process.returncode, out.splitlines(), self.errors())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Asks the server to stop and waits for its end."""
        self.ask_to_stop(number)
        return self.wait()


@contextmanager
def serving(repository: Path, *flags: str, without: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """A server of the bundles in `repository`, on a free port of this machine only, killed at the end if it still runs."""
    arguments = [f"--model_repository={repository}", "--host=127.0.0.1", "--port=0", "--threads=1", *flags]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as errors:
        process = subprocess.Popen(
            command_line("serving.main", *arguments, without=without),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield ServerProcess(process, Path(errors.name))
        finally:
            process.kill()
            process.communicate()
