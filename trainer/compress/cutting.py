"""A plan carried out: the cut and repaired model as a checkpoint like any other, and what it is worth."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from trainer import checkpoint
from trainer.compress import plan as plans
from trainer.compress import validation, width
from trainer.compress.choosing import dumped
from trainer.compress.given import Given
from trainer.compress.padding import padded_model
from trainer.compress.plan import Plan
from trainer.compress.repair import cut
from trainer.compress.stages import write_text
from trainer.config import config_hash, resolved_text


def carry_out(given: Given, plan: Plan, met: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes `folder`/checkpoints and plan.json; returns top-1 before and after, how long that took, and the repair's remarks."""
    teacher, data, whole = given.teacher, given.data, given.loaded.params
    seen = given.seen(keep=True)
    params, remarks = cut(teacher.model, whole, plan, teacher.images, teacher.how, seen)
    shape = plan.shape_of(teacher.model)
    # Few images are sooner answered at the teacher's sizes, for which everything is compiled.
    few = len(data.validation) < validation.WORTH_COMPILING
    cut_model = padded_model(teacher.model, plan, params) if few else (shape, params)
    began_s = time.monotonic()
    top1s = {"teacher": given.worth(teacher.model, whole), "cut and repaired": given.worth(*cut_model)}
    judged_s = round(time.monotonic() - began_s, 1)
    write_text(folder / plans.FILE, dumped(plan))
    if shape.width < teacher.model.width:  # for who distils: the way from the teacher's stream to this one's
        to_narrow = width.projection(seen.directions, shape.width).astype(np.float32)
        np.savez(folder / width.FILE, projection=to_narrow)
    if not checkpoint.steps(
        folder
    ):  # an interruption between the two leaves the model without the stage's record
        model, weights = given.pair.having(shape, params) if given.pair else (shape, params)
        card = checkpoint.Card(model, given.loaded.preprocess, given.loaded.labels, _meta(given, met))
        checkpoint.save_model(folder, card, weights)
    return {"validation_top1": top1s, "validation_seconds": judged_s, "remarks": [*remarks, *_remarks(given)]}


def _remarks(given: Given) -> list[str]:
    """What a reader of the report would otherwise take for something else."""
    stem, found = given.teacher.model.stem, []
    if given.pair:
        found.append(
            "top-1 of a pair's tower is how often its embedding is nearest to the teacher's of the same image"
        )
    if stem and not stem.stages:
        found.append("this stem has no bottleneck units, inside which channels could be cut; it is as it was")
    return found


def _meta(given: Given, met: dict[str, Any]) -> checkpoint.Meta:
    config, loaded = given.config, given.loaded
    return {
        **loaded.meta,
        "stage": "pruned",
        "dataset": given.data.name,
        "fingerprint": given.data.fingerprint,
        "data_dir": config.data_dir,
        "config_text": resolved_text(config),
        "config_hash": config_hash(config),
        "next_example": 0,
        "teacher_hash": loaded.meta["weights_hash"],
        "calibration_hash": given.calibration_hash,
        **({"budget": met} if met else {}),
    }
