"""The command `trainer.compress` as tests run it: whole and short, or the cut alone."""

from pathlib import Path
from typing import Any

from trainer.compress.__main__ import main

FLOW = (
    "--config=configs/compress.py",
    "--config.calibration.examples=256",
    "--config.calibration.batch=64",
    "--config.round_mlp=16",
    "--config.round_width=4",
    "--config.budget.params=0.6",
    "--config.distil.total_steps=4",
    "--config.distil.warmup_steps=1",
    "--config.halving.candidates=2",
    "--config.halving.steps=2",
)
# Few images, few moves and nothing that is not asked: the job is the same, and a test waits for it.
CUT = (
    "--config=configs/compress.py",
    "--config.calibration.examples=256",
    "--config.calibration.batch=64",
    "--config.until=cut",
    "--config.sensitivity=False",
    "--config.refits=0",
)
ROUNDING = ("--config.round_mlp=16",)


def run_flow(teacher: Path, workdir: Path, *more: str) -> dict[str, Any]:
    """The result of the whole command."""
    return main([f"--checkpoint={teacher}", f"--workdir={workdir}", *FLOW, *more])


def cut_arguments(teacher: Path, workdir: Path, *more: str) -> list[str]:
    """The arguments of a cut without a training step."""
    return [f"--checkpoint={teacher}", f"--workdir={workdir}", *CUT, *ROUNDING, *more]
