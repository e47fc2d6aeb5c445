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
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from absl import flags

from serving import installation


class ExitCode(enum.IntEnum):
    """How a command ended; the launcher decides from it whether to start again."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2  # bad flag, configuration or input: never retried
    PREEMPTED = 42  # state saved: retried, not counted
    STALLED = 43  # no step within the time-out: retried, counted
    LOST_PEER = 44  # the gang restarts, counted
    DISK_FULL = 45
    INTERRUPTED = 130  # somebody pressed Ctrl-C: never retried


class UserError(Exception):
    """Something its user can put right: one line that says what was wrong, what is allowed and what to do."""

    def __init__(self, message: str, exit_code: int = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _HelpShown(Exception):
    """`--help` was answered; there is nothing left to do."""


def parse_flags(
    values: flags.FlagValues,
    argv: Sequence[str],
    required: Sequence[str] = (),
    more_help: Callable[[], str] | None = None,
) -> list[str]:
    """Fills `values` from `argv` (without a program name) and returns the arguments that are not flags.

    Args:
      values: the flags that the command defines.
      argv: what was typed behind the command's name.
      required: flags that the help marks so; whether they are there is for the command to check.
      more_help: what the help says behind the flags.

    Raises:
      UserError: for an unknown flag or a value that its flag refuses.
    """
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        rest = values(["command", *argv])[1:]
    except flags.Error as error:
        raise UserError(f"{_flag_problem(values, str(error).splitlines()[0])} (see --help)") from error
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} is no finite number; give one (see --help)")
    if values["help"].value:
        about = (sys.modules["__main__"].__doc__ or "").strip()
        behind = [more_help().rstrip()] if more_help else []
        print("\n\n".join([about, "Flags:\n" + _flag_help(values, required), *behind]))
        raise _HelpShown
    return rest


_KINDS = ((flags.IntegerParser, "a whole number"), (flags.FloatParser, "a number"))


def _flag_problem(values: flags.FlagValues, said: str) -> str:
    """What absl says, in the user's words where it speaks of Python's."""
    found = re.fullmatch(
        r"flag --(\w+)=(.*): (invalid literal for int|could not convert string to float).*", said
    )
    if found is None or found[1] not in values:
        return said
    kind = next(
        (words for parser, words in _KINDS if isinstance(values[found[1]].parser, parser)), "another value"
    )
    return f"--{found[1]}={found[2]}: give {kind}"


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
    require_no_url(str(path), flag)
    existing = next(place for place in (path.absolute(), *path.absolute().parents) if _exists(place))
    if not existing.is_dir():
        raise UserError(f"{flag}={path}: {existing} is a file; give a folder")
    try:
        longest = os.pathconf(existing, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in path.parts):
            raise UserError(f"{flag}={path}: a name in it is longer than {longest} bytes; give a shorter one")
        os.rmdir(tempfile.mkdtemp(prefix=".writable-", dir=existing))
    except OSError as error:
        raise UserError(
            f"{flag}={path}: {existing} may not be written ({error.strerror}); give another folder, or put its "
            "permissions right"
        ) from error


def require_no_url(path: str, flag: str) -> None:
    """Refuses a URL where a folder is wanted.

    Raises:
      UserError: naming the flag.
    """
    if ":/" in path:
        raise UserError(f"{flag}={path} is a URL; give a folder, such as one where the storage is mounted")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


_ABSL_REPEATS = ";\n    repeat this option to specify a list of values"


def _flag_help(values: flags.FlagValues, required: Sequence[str]) -> str:
    lines = []
    for name in sorted(set(values) - {"help", "h"}):
        flag = values[name]
        default = "" if flag.default in (None, "", []) else f" (default: {_typed(flag.default)})"
        note = " (required)" if name in required else default
        lines.append(f"  --{name}: {flag.help.replace(_ABSL_REPEATS, '')}{note}")
    return "\n".join(lines)


def _typed(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def run_command(
    main: Callable[[list[str]], Mapping[str, object] | None],
    argv: Sequence[str] | None = None,
    extra: str = "",
) -> NoReturn:
    """Runs `main` as this process's command and ends the process with the code of the table.

    A package that is missing is imported inside `main`, so that it is told in one line; `extra` is what brings all of them.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    sys.exit(int(_outcome(main, list(sys.argv[1:] if argv is None else argv), extra)))


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


def _outcome(main: Callable[[list[str]], Mapping[str, object] | None], argv: list[str], extra: str) -> int:
    try:
        result = main(argv)
        if result is not None:
            print(json_text(result), flush=True)
    except _HelpShown:
        return ExitCode.DONE
    except UserError as error:
        _say_error(" ".join(str(error).split()))
        return error.exit_code
    except KeyboardInterrupt:
        _say_error("interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:  # anything else is our bug, and its traceback is what we need to mend it
        to_install = isinstance(error, ImportError) and installation.what_to_install(error.name, extra)
        if to_install:
            _say_error(to_install)
            return ExitCode.BAD_INPUT
        if isinstance(error, OSError) and error.errno == 28:
            _say_error(f"no space left on the disk: {error}; free some and run again")
            return ExitCode.DISK_FULL
        traceback.print_exc()
        return ExitCode.BUG
    return ExitCode.DONE


def _say_error(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(total: int, label: str, start: int = 0, stream: TextIO | None = None) -> Iterator["Progress"]:
    """A bar on stderr for work of `total` steps, drawn on a terminal and, as a line now and then, elsewhere."""
    bar = Progress(total, label, start, stream or sys.stderr)
    try:
        yield bar
    finally:
        bar.close()


class Progress:
    """Draws how far a long step is, how fast it goes, and how long it still takes.

    The speed is measured from the first advance on: until then the machine compiles. VITFORGE_PROGRESS=off draws nothing.
    """

    _WIDTH = 28

    def __init__(self, total: int, label: str, start: int, stream: TextIO) -> None:
        self._total, self._label, self._done, self._stream = max(total, 1), label, start, stream
        self._first: tuple[int, float] | None = None  # what was done at the first advance, and when
        self._drawn_s = time.monotonic()
        self._shown = os.environ.get("VITFORGE_PROGRESS") != "off"
        self._terminal = stream.isatty()
        # A log file gets a line every few seconds; a terminal, a bar that moves.
        self._every_s = 0.1 if self._terminal else float(os.environ.get("VITFORGE_PROGRESS_EVERY_S", "5"))
        self._note, self._drawn = "", -1

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts `steps` more as done; `note` (a loss, say) is shown behind the bar."""
        self._done += steps
        self._note = note or self._note
        now_s = time.monotonic()
        self._first = self._first or (self._done, now_s)
        if now_s - self._drawn_s >= self._every_s:
            self._drawn_s = now_s
            self._draw(now_s)

    def close(self) -> None:
        """Draws the last state, where it is not drawn yet, and ends the line."""
        if self._drawn != self._done:
            self._draw(time.monotonic())
        if self._terminal and self._shown:
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self, now_s: float) -> None:
        if not self._shown:
            return
        self._drawn = self._done
        filled = self._WIDTH * self._done // self._total
        bar = "█" * filled + "·" * (self._WIDTH - filled)
        text = f"{self._label} {bar} {self._done}/{self._total} {self._pace(now_s)}{self._note}".rstrip()
        self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        self._stream.flush()

    def _pace(self, now_s: float) -> str:
        done, since_s = self._first or (self._done, now_s)
        if self._done <= done or now_s <= since_s:
            return ""
        rate = (self._done - done) / (now_s - since_s)
        return f"{rate:.1f}/s {(self._total - self._done) / rate:.0f} s left "
