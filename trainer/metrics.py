"""The record of a run: one JSON object a line, fetched from the device one entry late so that the host never waits."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl`; only process 0 writes. Lines after `start_step` (of a killed run) are dropped."""

    def __init__(self, workdir: Path, start_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self.latest: dict[str, float] = {}
        if self._writes:
            kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= start_step]
            self._path.write_text("".join(line + "\n" for line in kept))

    def queue(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes metrics that may still be on their way, and writes those taken before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes what is pending."""
        if self._pending is not None:
            step, metrics = self._pending
            self._pending = None
            self.latest = {name: float(value) for name, value in metrics.items()}
            self.write(step, self.latest)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line now."""
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    return whole.splitlines()
