"""Which blocks of a student are compared with which of its teacher, and how the teacher's stream becomes the student's.

A cut says both: plan.json the teacher's block behind each that is left, projection.npz the rotation into fewer channels.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from serving.command import UserError
from trainer import checkpoint
from trainer.compress import plan, width
from trainer.config import Experiment
from trainer.data.source import Array
from trainer.description import Classifier, ViT, require_vit
from trainer.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Matching:
    """Pairs of (student's block, teacher's block), and the map (D, w) from stream to stream; None where they are the same."""

    pairs: tuple[tuple[int, int], ...]
    to_student: Array | None


def matching(experiment: Experiment, student: Classifier, teacher: Teacher) -> Matching:
    """How the features of `student` and `teacher` are matched in the blocks that `experiment` chooses.

    Raises:
      UserError: when no cut says it and the shapes differ, or a block is asked for that is not there.
    """
    own = require_vit(student, "feature_weight")
    other = require_vit(teacher.description, "feature_weight")
    if own.num_tokens != other.num_tokens:
        raise UserError(
            f"the teacher has {other.num_tokens} tokens, the student {own.num_tokens}; "
            "features cannot be matched, set feature_weight to 0"
        )
    if any(block.merge for model in (own, other) for block in model.blocks):
        raise UserError(
            "student or teacher merges tokens, so that their streams have not the same ones; "
            "features cannot be matched, set feature_weight to 0 (in a compression also: merge=never)"
        )
    sources, to_student = _of_cut(Path(experiment.pretrained), own, teacher) or _alike(own, other)
    return Matching(
        tuple((block, sources[block]) for block in chosen(experiment, len(sources), "the student's")),
        to_student,
    )


def chosen(experiment: Experiment, depth: int, whose: str) -> tuple[int, ...]:
    """The blocks that `feature_blocks` names, all for none; refuses one that is not among the `depth` that are `whose`."""
    blocks = experiment.matched_blocks or tuple(range(depth))
    if max(blocks, default=-1) >= depth:
        raise UserError(
            f"feature_blocks={experiment.feature_blocks!r} names block {max(blocks)}; {whose} are 0 to {depth - 1}"
        )
    return blocks


def _of_cut(folder: Path, student: ViT, teacher: Teacher) -> tuple[tuple[int, ...], Array | None] | None:
    """Sources and map as the cut in `folder` wrote them; None where there is none."""
    if not (folder / plan.FILE).is_file():
        return None
    cut_from = checkpoint.load_card(folder).meta["teacher_hash"]
    if cut_from != teacher.weights_hash:
        raise UserError(
            f"{folder} was cut from {cut_from[:12]}, the teacher is {teacher.weights_hash[:12]}; features are matched "
            "with the model that was cut: give it as teacher_weights, or set feature_weight to 0"
        )
    layers = plan.from_json(json.loads((folder / plan.FILE).read_text())).layers
    sources = tuple(layer.source for layer in layers)
    wide = teacher.description.width
    if student.width == wide:
        return sources, None
    if not (folder / width.FILE).is_file():
        raise UserError(f"{folder} lacks {width.FILE}, the map of its narrower stream; cut the teacher again")
    with np.load(folder / width.FILE) as arrays:
        to_student = arrays["projection"]
    if to_student.shape != (wide, student.width):
        raise UserError(
            f"{folder / width.FILE} has shape {to_student.shape}, expected is {(wide, student.width)}; cut the teacher again"
        )
    return sources, to_student


def _alike(student: ViT, teacher: ViT) -> tuple[tuple[int, ...], None]:
    shapes = [(len(model.blocks), model.width) for model in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise UserError(
            "the teacher has {} blocks of width {}, the student {} of width {}, and pretrained is no cut of it that could say "
            "how they belong together; begin with one, or set feature_weight to 0".format(
                *shapes[1], *shapes[0]
            )
        )
    return tuple(range(len(student.blocks))), None
