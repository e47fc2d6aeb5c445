"""Ends a run that does not get on: a process alone, or many that wait for one for ever.

A thread in each process watches the time since the last sign of life of its own loop. When it is too long it writes all stacks,
says which process is furthest behind, and ends its process with code 43, upon which the launcher starts the job again. Processes
tell each other where they are through the job's key-value store, never through a collective, which is what may be stuck.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed  # the store has no public name; Orbax reaches it so too

from serving.command import ExitCode

_KEY = "vitforge/alive/"
_BEFORE_STEPS = frozenset({"starting", "compiling", "restoring", "asking the teacher"})  # takes longer,
_TAKES = 4  # times the limit
_LATE_S = 2.0  # that a busy machine may wake this thread


class Watchdog:
    """Use as a context around the loop; `limit_s` of 0 watches nothing."""

    def __init__(self, workdir: Path, limit_s: float) -> None:
        self._workdir, self._limit_s = workdir, limit_s
        self._where: tuple[str, int] = ("starting", 0)
        self._alive_s = time.monotonic()
        self._ended = threading.Event()
        self._index = jax.process_index()
        self._store: Any = distributed.global_state.client
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit_s:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def at(self, phase: str, step: int) -> None:
        """The loop is alive: it begins `phase` of `step`."""
        self._where, self._alive_s = (phase, step), time.monotonic()

    def _watch(self) -> None:
        told, every_s, woke_s = None, min(self._limit_s / 10, 5.0), time.monotonic()
        while not self._ended.wait(every_s):
            slept_s, woke_s = time.monotonic() - woke_s, time.monotonic()
            # The whole process was stopped, or its machine: nobody is to blame.
            if slept_s > 3 * every_s + _LATE_S:
                self._alive_s += slept_s
            if self._store is not None and told != self._where:
                told = self._where
                self._tell(told)
            phase, _ = self._where
            limit_s = self._limit_s * (_TAKES if phase in _BEFORE_STEPS else 1)
            if time.monotonic() - self._alive_s > limit_s:
                self._end()

    def _tell(self, where: tuple[str, int]) -> None:
        said = {"phase": where[0], "step": where[1], "host": socket.gethostname(), "since": time.time()}
        try:
            self._store.key_value_set(f"{_KEY}{self._index}", json.dumps(said), allow_overwrite=True)
        except Exception as error:  # the coordinator may be gone: the watch goes on
            print(f"watchdog: cannot tell the others ({type(error).__name__})", file=sys.stderr)

    def _end(self) -> None:
        """Says what is known, and ends the process."""
        path = self._workdir / f"stacks-process-{self._index}.txt"
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"watchdog: {path} cannot be written ({error})", file=sys.stderr)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        phase, step = self._where
        here = f"process {self._index} has been {phase} at step {step} for {time.monotonic() - self._alive_s:.0f} s"
        print(
            f"error: stalled: {here}, the limit is stall_after_s={self._limit_s:g}; {self._behind()}all stacks are in {path}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(ExitCode.STALLED)

    def _behind(self) -> str:
        """Which process is furthest behind, where there are several."""
        if self._store is None:
            return ""
        try:
            told: list[tuple[str, str]] = self._store.key_value_dir_get(_KEY)
        except Exception as error:  # the coordinator may be gone
            return f"where the others are cannot be asked ({type(error).__name__}); "
        places: dict[int, dict[str, Any]] = {
            int(key.rpartition("/")[2]): json.loads(value) for key, value in told
        }
        slowest = min(places, key=lambda index: (places[index]["step"], places[index]["since"]))
        last = places[slowest]
        return (
            f"furthest behind is process {slowest} ({last['host']}), {last['phase']} at step {last['step']} for "
            f"{time.time() - last['since']:.0f} s; "
        )
