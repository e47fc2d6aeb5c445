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

_IDENTITY, _RECORDS = "compression.json", "stages"
# Where things are, and how far to go, change nothing of what is made; how to export changes nothing before the export.
_MAY_CHANGE = frozenset({"data_dir", "until"})
EXPORT, _OF_EXPORT = "export", "export."
Result = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


# All that a compression writes before its first stage is done; whatever else lies in a workdir is not ours to remove.
_BEFORE_ANY_STAGE = (_IDENTITY, "scores.npz", "scores.partial.npz", "losses.json", "search.json")


class Stages:
    """The stages of one compression in its workdir."""

    def __init__(self, workdir: Path, config: Compression, hashes: dict[str, str]) -> None:
        """Takes the workdir for this compression, or finds it there.

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
        write_text(identity, json.dumps({"config_text": resolved_text(config), "hashes": hashes}) + "\n")

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
        """A compression that is refused before a stage of it is done leaves nothing that would refuse a mended one."""
        try:
            yield
        except UserError as error:
            if error.exit_code == ExitCode.BAD_INPUT and not self._is_any_done():
                for name in _BEFORE_ANY_STAGE:
                    (self._workdir / name).unlink(missing_ok=True)
            raise

    def _record(self, stage: str) -> Path:
        return self._workdir / _RECORDS / f"{stage}.json"

    def _is_any_done(self) -> bool:
        return (self._workdir / _RECORDS).is_dir()

    def _refuse_other(self, stored: Result, config: Compression, hashes: dict[str, str]) -> None:
        may_change = _MAY_CHANGE
        if not self._record(EXPORT).is_file():
            may_change |= {name for name in flatten(config) if name.startswith(_OF_EXPORT)}
        refuse_changes(stored["config_text"], config, "another compression", may_change)
        for name, new in hashes.items():
            old = stored["hashes"].get(name, "none")
            if old != new:
                raise UserError(
                    f"{self._workdir} holds a compression of another {name}: sha256 {old[:12]} there, {new[:12]} now; "
                    "give another --workdir, or what it began with"
                )


def clear(folder: Path) -> None:
    """Removes what an interrupted stage left behind."""
    shutil.rmtree(folder, ignore_errors=True)
