"""The cut model trained towards the first teacher, by the one training loop."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from serving.command import UserError
from trainer import features, parts
from trainer.compress import merging
from trainer.compress.given import Given
from trainer.config import Compression, Experiment
from trainer.config.compression import Distil
from trainer.description import ViT
from trainer.train import mesh_of, train

# What a training calls --config.accum_steps is one of `distil` here; where its data lie is not.
_LEARNT = "|".join(field.name for field in dataclasses.fields(Distil))
_KEY = re.compile(rf"--config\.(?=({_LEARNT})\b)")


def check(given: Given) -> None:
    """Refuses, before anything is searched or cut, a distillation that could not begin after it.

    Raises:
      UserError: for a loss that the model has no token for, a batch that the devices do not divide, features that no cut
        could match.
    """
    config, teacher = given.config, given.teacher.model
    if config.until == "cut" or not config.distil.total_steps:
        return
    experiment = config.distillation("student", str(given.first), given.image_size, config.distil.total_steps)
    parts.check_token(experiment, teacher)
    mesh_of(experiment)
    if config.distil.feature_weight:
        _check_features(config, teacher, experiment)


def _check_features(config: Compression, teacher: ViT, experiment: Experiment) -> None:
    if config.shape.merge or (config.searched and merging.offered(config.merge, teacher)):
        raise UserError(
            f"distil.feature_weight={config.distil.feature_weight:g} matches streams token by token, but the student may merge "
            "tokens; set merge=never and shape.merge=0, or distil.feature_weight=0"
        )
    features.chosen(experiment, len(teacher.blocks), "the teacher's")  # of whom a student has no more


def distil(given: Given, student: Path, workdir: Path, steps: int, qat_steps: int = 0) -> dict[str, Any]:
    """Trains the checkpoint under `student` for `steps` in `workdir`, going on from what is there; the training's result.

    In the last `qat_steps` it trains as if in int8.

    Raises:
      UserError: for bad input, and when asked to stop, with the state saved.
    """
    experiment = given.config.distillation(str(student), str(given.first), given.image_size, steps, qat_steps)
    try:
        return dict(train(experiment, workdir))
    except UserError as error:
        raise UserError(_KEY.sub("--config.distil.", str(error)), error.exit_code) from error
