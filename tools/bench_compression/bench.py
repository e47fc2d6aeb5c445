"""What all verbs share: the teacher, where things go, and the steps they are made of, each a command that a person can type."""

import dataclasses
from pathlib import Path
from typing import Any

from tools.bench_compression.score import Score
from tools.steps import Result, Steps
from tools.stop_requests import StopRequests


@dataclasses.dataclass(frozen=True)
class Bench:
    """One benchmark of one teacher; `workdir` may be shared by several verbs, which then share what they made."""

    teacher: str
    workdir: Path
    results: Path
    dataset: str
    data_dir: str
    command: str
    steps: Steps
    stop: StopRequests

    def compress(self, name: str, *arguments: str) -> tuple[Result, Path]:
        """The teacher compressed in a process of its own, and the workdir of the result."""
        target = self.workdir / name
        said = self.steps.run(
            name,
            "trainer.compress",
            f"--checkpoint={self.teacher}",
            f"--config=configs/compress.py:{self.dataset}",
            "--config.budget.params=0",  # the recipe's own goal
            *self._data(),
            *arguments,
            f"--workdir={target}",
            makes=target,
        )
        return said, target

    def evaluate(self, name: str, checkpoint: str | Path, split: str = "test") -> Score:
        """Top-1 of a checkpoint on one split."""
        given = [f"--dataset={self.dataset}", f"--data_dir={self.data_dir}"] if self.data_dir else []
        arguments = [f"--checkpoint={checkpoint}", f"--split={split}", *given]
        return Score.of(self.steps.run(f"{name}, {split}", "trainer.evaluate", *arguments))

    def train(self, name: str, recipe: str, *arguments: str) -> Path:
        """The workdir of a training of `recipe`."""
        target = self.workdir / name
        self.steps.run(
            name, "trainer.main", f"--config={recipe}", f"--workdir={target}", *self._data(), *arguments
        )
        return target

    def export(self, repository: str, name: str, checkpoint: str | Path, precision: str) -> Result:
        """The exporter's result; the bundle lies in WORKDIR/REPOSITORY/NAME/1."""
        target = self.workdir / repository / name / "1"
        given = [f"--data_dir={self.data_dir}"] if self.data_dir else []
        return self.steps.run(
            f"export {name}",
            "trainer.export",
            f"--checkpoint={checkpoint}",
            f"--output={target}",
            f"--precision={precision}",
            *given,
            makes=target,
        )

    def shape(self, checkpoint: str | Path) -> dict[str, Any]:
        """What a checkpoint's model costs: params and macs."""
        from trainer import checkpoint as checkpoints
        from trainer import description

        model = checkpoints.load_card(checkpoint).description
        return {"params": description.param_count(model), "macs": description.macs(model)}

    def _data(self) -> list[str]:
        return [f"--config.data_dir={self.data_dir}"] if self.data_dir else []
