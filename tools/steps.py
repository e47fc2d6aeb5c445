"""Commands that a longer command runs one after the other: shown, recorded when they are done, and not repeated."""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.command import UserError
from tools.launchers.job import ending, table_code
from tools.stop_requests import StopRequests

GOES_ON = "run the same command to go on"
Result = dict[str, Any]


class Steps:
    """Runs commands one after the other, shows them as a user would type them, and remembers which are done.

    `environment` holds variables that change how fast a step is, never what it makes.
    """

    def __init__(
        self, workdir: Path, stop: StopRequests, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = workdir / "steps"
        self._stop = stop
        self._environment = os.environ | dict(environment or {})
        self.seconds: dict[str, float] = {}

    def run(
        self, name: str, module: str, *arguments: str, makes: Path | None = None, python: str = ""
    ) -> Result:
        """The result of `python -m module arguments`, run now or, with the same arguments, before.

        `makes` is what a step that cannot go on by itself leaves behind when it is interrupted; it is removed first.
        `python` is the interpreter of another environment; this one when empty.

        Raises:
          UserError: when the command fails, with its exit code; it has said why.
          Stopped: when it was asked to stop and ended well all the same.
        """
        record = self._folder / f"{name}.json"
        shown = " ".join([python or "python", "-m", module, *arguments])
        if record.is_file():
            done = json.loads(record.read_text())
            if done["command"] == shown:
                print(f"\n== {name}: done before\n   {shown}", file=sys.stderr)
                self.seconds[name] = done["seconds"]
                return done["result"]
        if makes is not None and not record.is_file():
            shutil.rmtree(makes, ignore_errors=True)
        print(f"\n== {name}\n   {shown}", file=sys.stderr, flush=True)
        began_s = time.monotonic()
        code, output = self._stop.run([python or sys.executable, "-m", module, *arguments], self._environment)
        if code:
            raise self._failure(name, code)
        self.seconds[name] = round(time.monotonic() - began_s, 1)
        result: Result = json.loads(output.splitlines()[-1])
        with self._stop.deferred():
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = record.with_suffix(".draft")
            done = {"command": shown, "seconds": self.seconds[name], "result": result}
            draft.write_text(json.dumps(done) + "\n")
            os.replace(draft, record)  # whole or not at all, should we be killed now
        return result

    def _failure(self, name: str, code: int) -> UserError:
        if self._stop.asked is None:
            what = f"step {name!r} failed with {ending(code)}; its own message stands above"
        else:
            what = f"{self._stop.asked.name}: step {name!r} ended with {ending(code)}; {GOES_ON}"
        return UserError(what, table_code(code))


def compiling_once(folder: str) -> dict[str, str]:
    """What makes JAX keep what it compiles in `folder`: several steps run models of one shape. A user's own setting stays."""
    settings = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {name: os.environ.get(name, value) for name, value in settings.items()}
