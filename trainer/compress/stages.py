"""What of a compression is done: one JSON record a stage, so that the command, run again, goes on with the first that is missing.

    WORKDIR/compression.json   what is compressed: configuration, sha256 of the teacher's weights and of the calibration images
           /stages/NAME.json   the result of a finished stage, and the seconds that it took

Every file is written whole or not at all. A workdir of another compression is refused by name of what differs.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving.command import ExitCode, UserError
from trainer import checkpoint
from trainer.config import Compression, refuse_changes, resolved_text
from trainer.config.fields import flatten
from trainer.config.resume import MAY_CHANGE_ON_RESUME

_IDENTITY, _RECORDS = "compression.json", "stages"
# Where things are, how far to go and how a training step is computed change nothing of what is made.
_MAY_CHANGE = frozenset(
    {"data_dir", "until", "budget.profile", *(f"distil.{name}" for name in MAY_CHANGE_ON_RESUME)}
)
# How to export changes nothing before the export, how to distil nothing before something was distilled: stages by their names.
EXPORT, DISTIL, RUNG, HALVING = "export", "distil", "rung", "halving"
_FREE_BEFORE = {"export.": (EXPORT,), "distil.": (DISTIL, RUNG, HALVING)}
_DECIDE_EARLIER = frozenset({"distil.rungs"})  # what is cut at all
Result = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


class Stages:
    """The stages of one compression in its workdir."""

    def __init__(self, workdir: Path, config: Compression, hashes: dict[str, str]) -> None:
        """Looks whether the workdir holds something else; `begin` takes it.

        Args:
          workdir: the folder of the compression.
          config: its configuration.
          hashes: what else it is made of: what a thing is called → its sha256.

        Raises:
          UserError: when the workdir holds something else.
        """
        self._workdir = workdir
        self.seconds: dict[str, float] = {}
        identity = workdir / _IDENTITY
        if identity.is_file():
            self._refuse_other(json.loads(identity.read_text()), config, hashes)
        elif checkpoint.steps(workdir):
            raise UserError(f"{workdir} already holds a checkpoint; give another --workdir or remove it")
        self._of = {"config_text": resolved_text(config), "hashes": hashes}

    def begin(self) -> None:
        """Takes the workdir for this compression."""
        write_text(self._workdir / _IDENTITY, json.dumps(self._of) + "\n")

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, done now or before; plain JSON values."""
        record = self._record(name)
        if not record.is_file():
            began_s = time.monotonic()
            result = work()
            seconds = round(time.monotonic() - began_s, 1)
            write_text(record, json.dumps({"seconds": seconds, "result": result}) + "\n")
        # Read back in either case: who goes on gets the very same values.
        done = json.loads(record.read_text())
        self.seconds[name] = done["seconds"]
        found: Result = done["result"]
        return found

    @contextlib.contextmanager
    def forgotten_when_refused(self) -> Iterator[None]:
        """A compression that is refused before a stage of it is done does not refuse a mended one.

        What it measured stays: each file says of what, and is measured anew for something else.
        """
        try:
            yield
        except UserError as error:
            if error.exit_code == ExitCode.BAD_INPUT and not self._is_any_done():
                (self._workdir / _IDENTITY).unlink(missing_ok=True)
            raise

    def _record(self, stage: str) -> Path:
        return self._workdir / _RECORDS / f"{stage}.json"

    def _is_any_done(self) -> bool:
        return (self._workdir / _RECORDS).is_dir()

    def _refuse_other(self, stored: Result, config: Compression, hashes: dict[str, str]) -> None:
        refuse_changes(stored["config_text"], config, "another compression", self._may_change(config))
        for name in stored["hashes"] | hashes:
            old, new = stored["hashes"].get(name, "none"), hashes.get(name, "none")
            if old != new:
                raise UserError(
                    f"{self._workdir} holds a compression of another {name}: sha256 {old[:12]} there, {new[:12]} now; "
                    "give another --workdir, or what it began with"
                )

    def _may_change(self, config: Compression) -> frozenset[str]:
        done = [record.stem for record in (self._workdir / _RECORDS).glob("*.json")]
        free = [
            prefix
            for prefix, stages in _FREE_BEFORE.items()
            if not any(name.startswith(stages) for name in done)
        ]
        return _MAY_CHANGE | {
            name for name in flatten(config) if name.startswith(tuple(free)) and name not in _DECIDE_EARLIER
        }


def clear(folder: Path) -> None:
    """Removes what an interrupted stage left behind."""
    shutil.rmtree(folder, ignore_errors=True)
