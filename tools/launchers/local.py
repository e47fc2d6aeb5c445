"""Every process of a job on this machine: how tests and laptops stand in for a pod.

The processes share their fate. The first that fails decides the exit code of the job and the others are ended. A request to
stop (SIGTERM, Ctrl-C, a closed terminal) reaches each of them as SIGTERM, on which the trainer saves its state, and process 0
then speaks for all. Threads only read: they put what they see on one queue, and everything is decided where it is taken off.
A launcher that is killed itself can end nothing any more; `guard`, a process beside it, does so then.
"""

import contextlib
import json
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from serving.command import ExitCode, UserError
from tools.launchers.job import Job, ending, program, table_code
from tools.launchers.restarts import Ended
from trainer.distributed import jobs

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What the collectives' library says to stdout when all is well, as each process begins.
_GLOO_CONNECTED = re.compile(
    r"\[Gloo\] Rank \d+ is connected to \d+ peer ranks\. Expected number of connected peer ranks is : \d+"
)
_GUARD = Path(__file__).with_name("guard.py")


@dataclass(frozen=True)
class _Line:
    index: int
    text: str
    is_stdout: bool


@dataclass(frozen=True)
class _End:
    """A process that ended (`code`), or one of the streams it wrote to (`code` is None)."""

    index: int
    code: int | None = None


@dataclass(frozen=True)
class _StopAsked:
    signal_name: str


_Event = _Line | _End | _StopAsked


class LocalLauncher:
    """Runs jobs as child processes of this one.

    Attributes:
      output: gets the result of process 0, as the last line.
      log: gets the lines of every process, headed by its number. Of the others than process 0 neither progress nor result is shown:
        they are the same. Files of output have all of it.
    """

    def __init__(self, output: TextIO | None = None, log: TextIO | None = None) -> None:
        self.output = output or sys.stdout
        self.log = log or sys.stderr

    def describe(self, job: Job) -> list[str]:
        """The variables and the command of each process, quoted for a shell."""
        command = shlex.join(program(job.command))
        environments = (_environment(job, index, "127.0.0.1:PORT") for index in range(job.processes))
        return [
            " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), command])
            for environment in environments
        ]

    def run(self, job: Job) -> Ended:
        """Starts the processes, stays until all have ended, and returns one exit code of the table."""
        command = program(job.command)
        with contextlib.ExitStack() as stack:
            logs = [stack.enter_context(log) for log in _log_files(job)]
            gang = _Gang(job, logs, self.log, stack.enter_context(_guard(job.grace_s)))
            stack.enter_context(_stop_signals_to(gang.events))
            stack.callback(gang.kill)
            gang.start(command, stack.enter_context(_held_port()))
            code = gang.wait()
        if gang.result is not None:
            print(gang.result, file=self.output, flush=True)
        return Ended(code, gang.is_final)


class _Gang:
    """The running processes of one job."""

    def __init__(self, job: Job, logs: list[TextIO], log: TextIO, guard: IO[bytes]) -> None:
        self.events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self.result: str | None = None
        self._job, self._logs, self._log, self._guard = job, logs, log, guard
        self._processes: list[subprocess.Popen[bytes]] = []
        self._codes: dict[int, int] = {}
        self._failure: tuple[str, int] | None = None
        self._stop_asked: str | None = None
        self._stopping = self._out_of_time = False
        self._deadline_s = None if job.timeout_s is None else time.monotonic() + job.timeout_s

    def start(self, command: tuple[str, ...], port: int) -> None:
        coordinator = f"127.0.0.1:{port}"
        for index in range(self._job.processes):
            process = subprocess.Popen(
                command,
                env=os.environ | _environment(self._job, index, coordinator),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A group of its own: Ctrl-C reaches it through us alone, and its own children can be ended with it.
                start_new_session=True,
            )
            self._tell_guard("+", process)
            self._processes.append(process)
            assert process.stdout is not None
            assert process.stderr is not None
            for target, arguments in (
                (self._read, (index, process.stdout, True)),
                (self._read, (index, process.stderr, False)),
                (self._await_end, (index, process)),
            ):
                threading.Thread(target=target, args=arguments, daemon=True).start()

    def wait(self) -> int:
        """Handles events until every process has ended and all that it wrote is read; the exit code of the job."""
        ends_to_come = 3 * len(self._processes)
        while ends_to_come:
            try:
                event = self.events.get(timeout=self._patience_s())
            except queue.Empty:
                self._run_out_of_time()
                continue
            match event:
                case _Line():
                    self._show(event)
                case _StopAsked():
                    self._ask_all_to_stop(event)
                case _End(index, code):
                    ends_to_come -= 1
                    if code is not None:
                        self._note_end(index, code)
        return self._verdict()

    @property
    def is_final(self) -> bool:
        """Whether a signal to this process, or the end of its time, ended the job."""
        return self._stop_asked is not None or self._out_of_time

    def kill(self) -> None:
        """Ends at once whatever still runs, with the processes it started."""
        for process in self._processes:
            if process.poll() is None:
                _kill_group(process)

    def _read(self, index: int, stream: IO[bytes], is_stdout: bool) -> None:
        with stream:
            for line in stream:
                # A bar that redraws itself leaves its last state only.
                text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                self.events.put(_Line(index, text, is_stdout))
        self.events.put(_End(index))

    def _await_end(self, index: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        # What it started and left behind would hold its streams open.
        _kill_group(process)
        self.events.put(_End(index, code))

    def _show(self, line: _Line) -> None:
        if self._logs:
            print(line.text, file=self._logs[line.index], flush=True)
        is_result = line.is_stdout and _is_json_object(line.text)
        if is_result and line.index == 0:
            self.result = line.text
        if not (is_result and line.index) and not _GLOO_CONNECTED.fullmatch(line.text):
            print(f"[{line.index}] {line.text}", file=self._log, flush=True)

    def _say(self, text: str) -> None:
        print(f"[launch] {text}", file=self._log, flush=True)

    def _tell_guard(self, change: str, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed the guard: the job does not depend on it
            self._guard.write(f"{change}{process.pid}\n".encode())

    def _note_end(self, index: int, code: int) -> None:
        self._codes[index] = code
        self._tell_guard("-", self._processes[index])
        self._say(f"process {index} ended with {ending(code)}")
        if code == 0 or self._stopping:
            return
        self._failure = (
            f"process {index} of {self._job.processes} failed first, with {ending(code)}",
            table_code(code),
        )
        # Who saved its state did so together with the others: they are about to end by themselves.
        self._stop(send=code != ExitCode.PREEMPTED)

    def _ask_all_to_stop(self, event: _StopAsked) -> None:
        if self._stop_asked:
            self._say(f"{event.signal_name} again: killing the processes")
            self.kill()
            return
        self._stop_asked = event.signal_name
        running = [str(index) for index in range(len(self._processes)) if index not in self._codes]
        self._say(
            f"{event.signal_name}: asking the processes to save and end; waiting for {', '.join(running)}, up to "
            f"{self._job.grace_s:g} s (--grace_s); asked again, they are killed at once"
        )
        self._stop(send=True)

    def _stop(self, send: bool) -> None:
        self._stopping = True
        self._deadline_s = time.monotonic() + self._job.grace_s
        for index, process in enumerate(self._processes):
            if send and index not in self._codes:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    def _patience_s(self) -> float | None:
        return None if self._deadline_s is None else max(self._deadline_s - time.monotonic(), 0.0)

    def _run_out_of_time(self) -> None:
        if self._stopping:
            self._say(
                f"not ended {self._job.grace_s:g} s (--grace_s) after being asked to: killing the processes"
            )
            self._deadline_s = None
            self.kill()
            return
        self._out_of_time = True
        self._failure = (f"not done within --timeout_s={self._job.timeout_s:g}", ExitCode.STALLED)
        self._stop(send=True)

    def _verdict(self) -> int:
        if self._stop_asked and self._failure is None and self._codes[0]:
            # Nobody starts again what a person has stopped, whatever the processes, which know of no person, say.
            by_hand = self._stop_asked == signal.SIGINT.name
            self._failure = (
                f"stopped; process 0 ended with {ending(self._codes[0])}",
                ExitCode.INTERRUPTED if by_hand else table_code(self._codes[0]),
            )
        if self._failure is None:
            return ExitCode.DONE
        text, code = self._failure
        where = f"; its output is in {self._job.logs_dir}" if self._job.logs_dir else ""
        print(f"error: {text}{where}", file=self._log, flush=True)
        return code


def _environment(job: Job, index: int, coordinator: str) -> dict[str, str]:
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(job.devices_per_process),
        "PYTHONUNBUFFERED": "1",
        **({"VITFORGE_PROGRESS": "off"} if index else {}),  # one bar speaks for all
        **job.env,
        jobs.COORDINATOR: coordinator,
        jobs.PORT_HELD: "1",
        jobs.NUM_PROCESSES: str(job.processes),
        jobs.PROCESS_ID: str(index),
    }


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """A port for process 0 to be the coordinator on, held for as long as the job runs.

    A socket that is bound and never listens keeps others off: the kernel gives the port to nobody, and who asks for it by number
    is refused. With SO_REUSEPORT set on both sides, as gRPC sets it, a process of the same user may listen there all the same.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@contextlib.contextmanager
def _guard(grace_s: float) -> Iterator[IO[bytes]]:
    """The pipe to a `guard`, whose end ends it; it has nothing to do when all processes have ended before."""
    command = [sys.executable, "-I", "-S", str(_GUARD), str(grace_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True) as guard:
        assert guard.stdin is not None
        yield guard.stdin


def _log_files(job: Job) -> Iterator[TextIO]:
    """Opened to append: the output of an earlier run that failed is not lost."""
    if job.logs_dir is None:
        return
    try:
        job.logs_dir.mkdir(parents=True, exist_ok=True)
        for index in range(job.processes):
            yield (job.logs_dir / f"process_{index}.log").open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--logs={job.logs_dir}: {error.strerror}; give a folder that can be written"
        ) from error


def _is_json_object(text: str) -> bool:
    # The collectives' own chatter comes on stdout too, so the last line is not always the result.
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _stop_signals_to(events: "queue.SimpleQueue[_Event]") -> Iterator[None]:
    def hear(number: int, frame: FrameType | None) -> None:
        events.put(_StopAsked(signal.Signals(number).name))

    before = {number: signal.signal(number, hear) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
