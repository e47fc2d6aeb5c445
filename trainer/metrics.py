"""The record of a run: one JSON object a line, fetched from the device one entry late so that the host never waits."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from serving.command import json_text
from trainer.guard import SKIPPED
from trainer.skips import Skips

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl`, and to `workdir/tensorboard`; only process 0 writes.

    Lines after `start_step` (of a killed run) are dropped. A value that is no finite number is written as null.
    """

    def __init__(self, workdir: Path, start_step: int, skips: Skips) -> None:
        self._path = workdir / "metrics.jsonl"
        self._skips = skips
        self._pending: tuple[int, Mapping[str, jax.Array], bool] | None = None
        self._kept: set[tuple[int, frozenset[str]]] = set()
        self.latest: dict[str, float] = {}
        self._board: SummaryWriter | None = None  # of process 0 alone
        if jax.process_index() == 0:
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
            self._keep([entry for entry in _entries(self._path) if entry["step"] <= start_step])

    def _keep(self, entries: list[dict[str, Any]]) -> None:
        """The record with just `entries`, whole at any moment, so that a kill now loses nothing."""
        self._kept = {(entry["step"], frozenset(entry)) for entry in entries}
        draft = self._path.with_suffix(".draft")
        draft.write_text("".join(json_text(entry) + "\n" for entry in entries))
        os.replace(draft, self._path)

    def queue(self, step: int, metrics: Mapping[str, jax.Array], written: bool = True) -> None:
        """Takes metrics that may still be on their way, to be `written` or not, and deals with those taken before."""
        self.flush()
        self._pending = (step, metrics, written)

    def flush(self) -> None:
        """Deals with what is pending: a skipped step is told to `skips` and written in its words."""
        if self._pending is None:
            return
        (step, metrics, written), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if values.pop(SKIPPED, False):
            self.write(step, self._skips.entry(step, values))
            return
        self._skips.taken()
        if written:
            self.latest = values
            self.write(step, values)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line now, unless a restart has kept the line with these values of this step."""
        entry = {"step": step, **values}
        if self._board is None or (step, frozenset(entry)) in self._kept:
            return
        with self._path.open("a") as file:
            file.write(json_text(entry) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what TensorBoard has not been shown yet."""
        if self._board is not None:
            self._board.close()


def _entries(path: Path) -> list[dict[str, Any]]:
    """What the whole lines of the file say. Lines that no run has written are left out, with a warning."""
    if not path.is_file():
        return []
    text = path.read_text(errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    entries = []
    for number, line in enumerate(whole.split("\n")[:-1], 1):
        entry = _entry(line)
        if entry is None:
            _log.warning(
                '%s, line %d is no record of a step and is left out: %.60r; lines look like {"step": 1, …}',
                path,
                number,
                line,
            )
        else:
            entries.append(entry)
    return entries


def _entry(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None
