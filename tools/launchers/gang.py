"""The processes of a job as children of the launcher: each runs here, or is what runs one on another host.

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
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from serving.command import ExitCode, UserError
from tools.launchers.job import Job, ending, table_code
from tools.launchers.restarts import Ended

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What the collectives' library says to stdout when all is well, as each process begins.
GLOO_CONNECTED = re.compile(
    r"\[Gloo\] Rank \d+ is connected to \d+ peer ranks\. Expected number of connected peer ranks is : \d+"
)
_BEAT_S = 5.0  # between signs of life
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


@dataclass(frozen=True)
class Member:
    """One child of the launcher: a process of the job, or what runs one elsewhere.

    Attributes:
      command: program and arguments.
      env: variables over those of the launcher.
      told: the first line on its stdin, which then stays open: an empty line now and then says that the launcher lives, "stop"
        asks to end. None: no stdin, and it is asked by SIGTERM.
      name: of what is no single process, in place of its number.
      lost_code: what it ends with when the host that it runs a process on is lost.
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    told: str | None = None
    name: str = ""
    lost_code: int | None = None


class Gang:
    """The members of one job while it runs, once.

    Stdout gets the result of process 0, as the last line. Stderr gets the lines of every process, headed by its number. Of the
    others than process 0 neither progress nor result is shown: they are the same. Files of output under `logs` have all of it.
    """

    def __init__(self, job: Job, members: Sequence[Member], logs: Path | None = None) -> None:
        self._job, self._members, self._folder = job, members, logs
        self._output, self._log = sys.stdout, sys.stderr
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._result: str | None = None
        self._logs: list[TextIO] = []
        self._guard: IO[bytes] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._codes: dict[int, int] = {}
        self._failure: tuple[str, int] | None = None
        self._stop_asked: str | None = None
        self._stopping = self._out_of_time = False
        self._next_beat_s = time.monotonic() + _BEAT_S
        self._deadline_s = None if job.timeout_s is None else time.monotonic() + job.timeout_s

    def run(self) -> Ended:
        """Starts the members, stays until all have ended, and returns one exit code of the table."""
        with contextlib.ExitStack() as stack:
            self._logs = [stack.enter_context(log) for log in self._log_files()]
            self._guard = stack.enter_context(_guard(self._job.grace_s))
            stack.enter_context(_stop_signals_to(self._events))
            stack.callback(self._kill)
            kept = f"; their output is kept in {self._folder}" if self._folder else ""
            self._say(
                f"starting {self._job.count} {'process' if self._job.count == 1 else 'processes'}{kept}"
            )
            for index, member in enumerate(self._members):
                self._start(index, member)
            code, reason = self._wait()
        if self._result is not None:
            print(self._result, file=self._output, flush=True)
        return Ended(code, self._stop_asked is not None or self._out_of_time, reason)

    def _start(self, index: int, member: Member) -> None:
        process = subprocess.Popen(
            member.command,
            env=os.environ | dict(member.env),
            stdin=subprocess.DEVNULL if member.told is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: Ctrl-C reaches it through us alone, and its own children can be ended with it.
            start_new_session=True,
        )
        self._tell_guard("+", process)
        self._processes.append(process)
        if member.told is not None:
            self._tell(index, member.told)
        assert process.stdout is not None
        assert process.stderr is not None
        for target, arguments in (
            (self._read, (index, process.stdout, True)),
            (self._read, (index, process.stderr, False)),
            (self._await_end, (index, process)),
        ):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def _wait(self) -> tuple[int, str]:
        """Handles events until every process has ended and all that it wrote is read; the exit code of the job, and why."""
        ends_to_come = 3 * len(self._processes)
        while ends_to_come:
            self._beat()
            try:
                event = self._events.get(timeout=self._patience_s())
            except queue.Empty:
                self._let_time_pass()
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

    def _kill(self) -> None:
        """Ends at once whatever still runs, with the processes it started."""
        for process in self._processes:
            if process.poll() is None:
                _kill_group(process)

    def _read(self, index: int, stream: IO[bytes], is_stdout: bool) -> None:
        with stream:
            for line in stream:
                # A bar that redraws itself leaves its last state only.
                text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                self._events.put(_Line(index, text, is_stdout))
        self._events.put(_End(index))

    def _await_end(self, index: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        # What it started and left behind would hold its streams open.
        _kill_group(process)
        self._events.put(_End(index, code))

    def _show(self, line: _Line) -> None:
        if self._logs:
            print(line.text, file=self._logs[line.index], flush=True)
        is_result = line.is_stdout and _is_json_object(line.text)
        if is_result and line.index == 0:
            self._result = line.text
        if not (is_result and line.index) and not GLOO_CONNECTED.fullmatch(line.text):
            head = self._members[line.index].name or line.index
            self._print(f"[{head}] {line.text}")

    def _running(self) -> str:
        """The members that have not ended, by number."""
        running = (index for index in range(len(self._processes)) if index not in self._codes)
        return ", ".join(self._members[index].name or str(index) for index in running)

    def _called(self, index: int) -> str:
        return self._members[index].name or f"process {index}"

    def _say(self, text: str) -> None:
        self._print(f"[launch] {text}")

    def _print(self, line: str) -> None:
        # Whoever watched may be gone, with the terminal or the pipe; the processes go on, or are asked to save by a signal.
        with contextlib.suppress(OSError):
            print(line, file=self._log, flush=True)

    def _log_files(self) -> Iterator[TextIO]:
        """Opened to append: the output of an earlier run that failed is not lost."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for index in range(len(self._members)):
                yield (self._folder / f"process_{index}.log").open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self._folder}: {error.strerror}; give --records a folder that can be written"
            ) from error

    def _tell(self, index: int, line: str) -> None:
        """Writes to a member's stdin; one that has ended reads no more."""
        pipe = self._processes[index].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.write(f"{line}\n".encode())
            pipe.flush()

    def _tell_guard(self, change: str, process: subprocess.Popen[bytes]) -> None:
        assert self._guard is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed the guard: the job does not depend on it
            self._guard.write(f"{change}{process.pid}\n".encode())

    def _note_end(self, index: int, code: int) -> None:
        self._codes[index] = code
        self._tell_guard("-", self._processes[index])
        if pipe := self._processes[index].stdin:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._say(f"{self._called(index)} ended with {ending(code)}")
        if code == 0 or self._stopping:
            return
        lost = code == self._members[index].lost_code
        how = f"{ending(code)}: its host is not reached any more" if lost else ending(code)
        self._failure = (
            f"{self._called(index)} of {self._job.count} failed first, with {how}"
            if not self._members[index].name
            else f"{self._called(index)} failed, with {how}",
            ExitCode.LOST_PEER if lost else table_code(code),
        )
        # Who saved its state did so together with the others: they are about to end by themselves.
        self._stop(send=code != ExitCode.PREEMPTED)
        others = self._running()
        if others:
            doing = "waiting for" if code == ExitCode.PREEMPTED else "asking to save and end:"
            self._say(f"{doing} {others}, up to {self._job.grace_s:g} s (--grace_s)")

    def _ask_all_to_stop(self, event: _StopAsked) -> None:
        if self._stop_asked:
            self._say(f"{event.signal_name} again: killing the processes")
            self._kill()
            return
        self._stop_asked = event.signal_name
        self._say(
            f"{event.signal_name}: asking the processes to save and end; waiting for {self._running()}, up to "
            f"{self._job.grace_s:g} s (--grace_s); asked again, they are killed at once"
        )
        self._stop(send=True)

    def _stop(self, send: bool) -> None:
        self._stopping = True
        self._deadline_s = time.monotonic() + self._job.grace_s
        for index, process in enumerate(self._processes):
            if not send or index in self._codes:
                continue
            if self._members[index].told is not None:
                self._tell(index, "stop")
            else:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    def _patience_s(self) -> float | None:
        """Until something is to be done though nothing happens: the deadline, or the next sign of life."""
        times_s = [] if self._deadline_s is None else [self._deadline_s]
        if any(member.told is not None for member in self._members):
            times_s.append(self._next_beat_s)
        return max(min(times_s) - time.monotonic(), 0.0) if times_s else None

    def _let_time_pass(self) -> None:
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            self._run_out_of_time()

    def _beat(self) -> None:
        """A sign of life, when it is time for one, however much there is to show."""
        if time.monotonic() < self._next_beat_s:
            return
        self._next_beat_s = time.monotonic() + _BEAT_S
        for index, member in enumerate(self._members):
            if member.told is not None and index not in self._codes:
                self._tell(index, "")

    def _run_out_of_time(self) -> None:
        if self._stopping:
            self._say(
                f"not ended {self._job.grace_s:g} s (--grace_s) after being asked to: killing the processes"
            )
            self._deadline_s = None
            self._kill()
            return
        self._out_of_time = True
        self._failure = (f"not done within --timeout_s={self._job.timeout_s:g}", ExitCode.STALLED)
        self._stop(send=True)

    def _verdict(self) -> tuple[int, str]:
        if self._stop_asked and self._failure is None and self._codes[0]:
            # Nobody starts again what a person has stopped, whatever the processes, which know of no person, say.
            by_hand = self._stop_asked == signal.SIGINT.name
            self._failure = (
                f"stopped; {self._called(0)} ended with {ending(self._codes[0])}",
                ExitCode.INTERRUPTED if by_hand else table_code(self._codes[0]),
            )
        if self._failure is None:
            return ExitCode.DONE, ""
        text, code = self._failure
        where = f"; its output is in {self._folder}" if self._folder else ""
        self._print(f"error: {text}{where}")
        return code, text


@contextlib.contextmanager
def _guard(grace_s: float) -> Iterator[IO[bytes]]:
    """The pipe to a `guard`, whose end ends it; it has nothing to do when all processes have ended before."""
    command = [sys.executable, "-I", "-S", str(_GUARD), str(grace_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True) as guard:
        assert guard.stdin is not None
        yield guard.stdin


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
