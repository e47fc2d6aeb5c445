"""The cut model trained towards the first teacher, by the one training loop."""

from pathlib import Path
from typing import Any

from trainer.compress.given import Given
from trainer.train import train


def distil(given: Given, student: Path, workdir: Path, steps: int, qat_steps: int = 0) -> dict[str, Any]:
    """Trains the checkpoint under `student` for `steps` in `workdir`, going on from what is there; the training's result.

    In the last `qat_steps` it trains as if in int8.

    Raises:
      UserError: for bad input, and when asked to stop, with the state saved.
    """
    experiment = given.config.distillation(str(student), str(given.first), given.image_size, steps, qat_steps)
    return dict(train(experiment, workdir))
