"""The cuts of one teacher to fractions of its MACs without a training step: ours, a uniform one, and the peer's."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.command import UserError
from tools.bench_compression.bench import Bench
from tools.bench_compression.score import Score

OURS, UNIFORM, PEER = "ours, budget search", "ours, uniform", "Torch-Pruning"
# What the recipe calls the two ways to spend a budget, and what ends a compression with the cut.
_SEARCH = {
    OURS: ("--config.search=budget",),
    UNIFORM: ("--config.search=uniform",),
}
_CUT_ONLY = ("--config.until=cut", "--config.sensitivity=False")
# Of the budget, for one keep ratio of everything: what rounds to just above it costs the uniform cut a whole step otherwise.
_UNIFORM_SLACK = 1.01
_AGREES = 1e-3  # of top-1: the peer's count and ours on its weights; ties of rounding, not another model


@dataclasses.dataclass(frozen=True)
class Cut:
    """One cut model: how it was made, asked and actual cost, test accuracy, and where it lies.

    `seconds` are the wall seconds of the whole command, `cutting_seconds` those of scores, search, cut and repair in it: without
    its start, the teacher's and the cut's accuracy on the validation images, and the report.
    """

    method: str
    fraction: float
    macs: int
    params: int
    seconds: float | None
    cutting_seconds: float | None
    score: Score
    checkpoint: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def ours(bench: Bench, fraction: float, examples: int, method: str = OURS) -> Cut:
    """The teacher cut to `fraction` of its MACs by us; the seconds are those of the whole command."""
    name = f"{'cut' if method == OURS else 'uniform'}-{fraction:g}"
    asked = fraction if method == OURS else _UNIFORM_SLACK * fraction
    said, target = bench.compress(
        name,
        f"--config.budget.macs={asked:g}",
        f"--config.calibration.examples={examples}",
        *_SEARCH[method],
        *_CUT_ONLY,
    )
    cut = json.loads((target / "stages" / "cut.json").read_text())["result"]
    cutting = sum(said["seconds_by_stage"].values()) - cut["validation_seconds"]
    sizes = {size: said[size]["actual"] for size in ("macs", "params")}
    return Cut(
        method,
        fraction,
        **sizes,
        seconds=bench.steps.seconds[name],
        cutting_seconds=round(cutting, 1),
        score=bench.evaluate(name, target),
        checkpoint=str(target),
    )


def require_peer(python: str) -> None:
    """Refuses to begin without the peer's interpreter.

    Raises:
      UserError: naming how to make it, and how to do without.
    """
    if python and not Path(python).is_file():
        raise UserError(
            f"--peer_python={python} is not there; `make peer` makes it, --peer_python= leaves Torch-Pruning out"
        )


def peers(bench: Bench, fractions: Sequence[float], calibrated: str, python: str) -> list[Cut]:
    """The teacher cut by Torch-Pruning, with the images that calibrated the cut in `calibrated`; none without a `python`.

    Raises:
      UserError: when our evaluation of its weights is not the peer's own.
    """
    if not python:
        return []
    asked = ",".join(f"{fraction:g}" for fraction in fractions)
    folder = bench.workdir / f"peer-{asked.replace(',', '-')}"
    inputs, weights, models = (folder / part for part in ("inputs", "weights", "models"))
    given = [f"--data_dir={bench.data_dir}"] if bench.data_dir else []
    bench.steps.run(
        f"peer inputs {asked}",
        "tools.bench_compression.peer_inputs",
        f"--teacher={bench.teacher}",
        f"--cut={calibrated}",
        f"--output={inputs}",
        *given,
    )
    said = bench.steps.run(
        f"peer cuts {asked}",
        "tools.bench_compression.torch_peer",
        f"--inputs={inputs}",
        f"--output={weights}",
        f"--fractions={asked}",
        python=python,
    )
    bench.steps.run(
        f"peer checkpoints {asked}",
        "tools.bench_compression.peer_checkpoints",
        f"--teacher={bench.teacher}",
        f"--weights={weights}",
        f"--output={models}",
        makes=models,
    )
    return [_peer(bench, one, models / Path(one["file"]).stem) for one in said["cuts"]]


def _peer(bench: Bench, said: dict[str, Any], target: Path) -> Cut:
    shape, score = bench.shape(target), bench.evaluate(f"peer-{target.name}", target)
    if shape["macs"] != said["macs"] or abs(score.top1 - said["correct"] / said["examples"]) > _AGREES:
        raise UserError(
            f"{target}: the peer says {said['macs']} MACs and {said['correct']} of {said['examples']} right, "
            f"we say {shape['macs']} and {score.top1 * score.examples:.0f}; its weights were read wrongly"
        )
    method = f"{PEER} {said['method']}"
    return Cut(
        method,
        said["fraction"],
        **shape,
        seconds=None,
        cutting_seconds=None,
        score=score,
        checkpoint=str(target),
    )
