"""The frame in which every command of the house stands.

A command is a function `main(argv) -> result`. This module gives it flags, a progress bar, logging to stderr, its result as one
JSON object on the last line of stdout, and one exit code from the table that trainer, watchdog and launcher share.
It knows nothing of models and imports neither gRPC nor jax, so that the smallest installation (the client) can use it.
"""

import contextlib
import enum
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from absl import flags


class ExitCode(enum.IntEnum):
    """How a command ended; the launcher decides from it whether to start again."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2  # bad flag, configuration or input: never retried
    PREEMPTED = 42  # state saved: retried, not counted
    STALLED = 43  # no step within the time-out: retried, counted
    LOST_PEER = 44  # the gang restarts, counted
    DISK_FULL = 45


class UserError(Exception):
    """Something its user can put right: one line that says what was wrong, what is allowed and what to do."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _HelpShown(Exception):
    """`--help` was answered; there is nothing left to do."""


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Fills `values` from `argv` (without a program name) and returns the arguments that are not flags.

    Raises:
      UserError: for an unknown flag or a value that its flag refuses.
    """
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        rest = values(["command", *argv])[1:]
    except flags.Error as error:
        raise UserError(f"{str(error).splitlines()[0]} (see --help)") from error
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} is no finite number; give one (see --help)")
    if values["help"].value:
        main = sys.modules["__main__"]
        print((main.__doc__ or "").strip() + "\n\nFlags:\n" + _flag_help(values), file=sys.stderr)
        raise _HelpShown
    return rest


def require_usage(extra: Sequence[str], complete: bool, needed: str) -> None:
    """Refuses arguments that are no flags, or a command line that is not `complete`.

    Raises:
      UserError: naming the first of `extra`, or what is `needed`.
    """
    if extra or not complete:
        problem = f"unexpected argument {extra[0]!r}" if extra else needed
        raise UserError(f"{problem} (see --help)")


def require_folder(path: Path, flag: str) -> None:
    """Refuses a path at which no folder can be made and written, before any work is done for it.

    Raises:
      UserError: naming the flag, and what stands in the way.
    """
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"{flag}={path}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(
            f"{flag}={path}: {existing} may not be written; give another folder, or put its permissions right"
        )


def _flag_help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(set(values) - {"help", "h"}):
        flag = values[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def run_command(
    main: Callable[[list[str]], Mapping[str, object] | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs `main` as this process's command and ends the process with the code of the table."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    sys.exit(int(_outcome(main, list(sys.argv[1:] if argv is None else argv))))


def json_text(value: object) -> str:
    """`value` as JSON on one line. JSON has no NaN and no infinity, which a diverged run may report: they become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _outcome(main: Callable[[list[str]], Mapping[str, object] | None], argv: list[str]) -> ExitCode:
    try:
        result = main(argv)
        if result is not None:
            print(json_text(result), flush=True)
    except _HelpShown:
        return ExitCode.DONE
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        return ExitCode.BUG
    except Exception as error:  # anything else is our bug, and its traceback is what we need to mend it
        if isinstance(error, OSError) and error.errno == 28:
            print(
                f"error: no space left on the disk: {error}; free some and run again",
                file=sys.stderr,
                flush=True,
            )
            return ExitCode.DISK_FULL
        traceback.print_exc()
        return ExitCode.BUG
    return ExitCode.DONE


@contextlib.contextmanager
def progress(total: int, label: str, start: int = 0, stream: TextIO | None = None) -> Iterator["Progress"]:
    """A bar on stderr for work of `total` steps, drawn on a terminal and, as a line now and then, elsewhere."""
    bar = Progress(total, label, start, stream or sys.stderr)
    try:
        yield bar
    finally:
        bar.close()


class Progress:
    """Draws how far a long step is, how fast it goes, and how long it still takes."""

    _WIDTH = 28

    def __init__(self, total: int, label: str, start: int, stream: TextIO) -> None:
        self._total, self._label, self._done, self._start, self._stream = (
            max(total, 1),
            label,
            start,
            start,
            stream,
        )
        self._began_s = self._drawn_s = time.monotonic()
        self._terminal = stream.isatty()
        # A log file gets a line every few seconds; a terminal, a bar that moves.
        self._every_s = 0.1 if self._terminal else float(os.environ.get("VITFORGE_PROGRESS_EVERY_S", "5"))
        self._note, self._drawn = "", -1

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts `steps` more as done; `note` (a loss, say) is shown behind the bar."""
        self._done += steps
        self._note = note or self._note
        now_s = time.monotonic()
        if now_s - self._drawn_s >= self._every_s:
            self._drawn_s = now_s
            self._draw(now_s)

    def close(self) -> None:
        """Draws the last state, where it is not drawn yet, and ends the line."""
        if self._drawn != self._done:
            self._draw(time.monotonic())
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self, now_s: float) -> None:
        self._drawn = self._done
        elapsed_s = max(now_s - self._began_s, 1e-9)
        rate = (self._done - self._start) / elapsed_s
        left_s = (self._total - self._done) / rate if rate else 0.0
        filled = self._WIDTH * self._done // self._total
        bar = "█" * filled + "·" * (self._WIDTH - filled)
        text = f"{self._label} {bar} {self._done}/{self._total} {rate:.1f}/s {left_s:.0f} s left {self._note}".rstrip()
        self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        self._stream.flush()
