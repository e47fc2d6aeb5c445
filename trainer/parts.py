"""From a configuration to the parts of a run: data, model, first weights, teacher, objective.

This is where names and paths become objects; training itself receives the objects.
"""

import dataclasses
from typing import Literal

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, description, features, objectives, schedules
from trainer.checkpoint import Card
from trainer.config import Experiment, config_hash, resolved_text
from trainer.data.datasets import open_dataset
from trainer.data.encoded import EncodedImages
from trainer.data.source import Dataset, require_channels
from trainer.description import Classifier
from trainer.models.build import Params
from trainer.objectives import Objective
from trainer.start import Start, start_from
from trainer.teacher import Teacher, check_teacher, load_teacher

_MIDDLE = 0.875  # of the smaller side: 224 of 256 pixels


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run trains on, from, and towards; `experiment` has its durations in steps."""

    experiment: Experiment
    dataset: Dataset
    card: Card
    pretrained: Params | None
    teacher: Teacher | None
    objective: Objective | None  # None of a pair, whose loss knows all of a batch


def assemble(experiment: Experiment) -> Parts:
    """Opens everything that `experiment` names.

    Raises:
      UserError: for an unknown dataset or model, an unreadable checkpoint, or parts that do not fit together.
    """
    dataset = open_dataset(experiment.dataset, experiment.data_dir, experiment.bad_images)
    experiment = experiment.in_steps(len(dataset.train))
    teacher = _teacher(experiment)
    start = _start(experiment, dataset)
    spec = start.preprocess if start else _first_sight(experiment, dataset, teacher)
    model = start.description if start else _shape(experiment, dataset, spec)
    if teacher is not None:
        check_teacher(teacher, spec, dataset.class_names, model)
    card = Card(model, spec, dataset.class_names, _meta(experiment, dataset, start, teacher))
    objective = _objective(experiment, model, teacher)
    return Parts(experiment, dataset, card, start.params if start else None, teacher, objective)


def _first_sight(experiment: Experiment, dataset: Dataset, teacher: Teacher | None) -> PreprocessSpec:
    """How a model without weights sees images: as its teacher does, where that is for such images."""
    if teacher is not None and teacher.preprocess.channels == dataset.train.channels:
        size = experiment.image_size
        return dataclasses.replace(teacher.preprocess, height=size, width=size)
    return preprocessing(dataset, experiment.image_size)


def preprocessing(dataset: Dataset, image_size: int) -> PreprocessSpec:
    """How images of `dataset` become model input, pixels in [-1, 1] (ViT's own range): small ones squashed to a square, photographs
    by the middle of what resizing leaves, as the field evaluates them.
    """
    channels = dataset.train.channels
    scale = (127.5,) * channels
    color: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    spec = PreprocessSpec(color=color, height=image_size, width=image_size, mean=scale, std=scale)
    photographs = isinstance(dataset.train.images, EncodedImages)
    return dataclasses.replace(spec, resize="crop", crop_fraction=_MIDDLE) if photographs else spec


def _start(experiment: Experiment, dataset: Dataset) -> Start | None:
    """The weights to begin with, when there are any."""
    if not experiment.pretrained:
        return None
    start = start_from(experiment.pretrained, experiment.model, experiment.image_size, dataset.class_names)
    require_channels(dataset.train, start.preprocess.channels, dataset.name)
    return start


def _shape(experiment: Experiment, dataset: Dataset, spec: PreprocessSpec) -> Classifier:
    """The model to begin without weights."""
    if experiment.shape_of:
        model = checkpoint.load_card(experiment.shape_of).classifier
        _check_fits(model, dataset, spec, experiment.shape_of)
        return model
    size, channels = (spec.height, spec.width), dataset.train.channels
    named = description.named(experiment.model, size, channels, len(dataset.class_names))
    return description.require_classifier(named, "training")


def _check_fits(model: Classifier, dataset: Dataset, spec: PreprocessSpec, path: str) -> None:
    data = ((spec.height, spec.width), dataset.train.channels, len(dataset.class_names))
    if (model.image_size, model.channels, model.num_classes) != data:
        has = f"{model.image_size} pixels, {model.channels} channels, {model.num_classes} classes"
        asked = "{} pixels, {} channels, {} classes".format(*data)
        raise UserError(
            f"the model of {path} is made for {has}, the configuration asks for {asked}; change one of them"
        )


def _teacher(experiment: Experiment) -> Teacher | None:
    if not experiment.distils:
        return None
    return load_teacher(experiment.teacher_weights, experiment.teacher_model, experiment.image_size)


_IMITATIONS = {
    "soft": (objectives.soft, False),
    "hard": (objectives.hard, False),
    "token": (objectives.hard, True),
    "token_soft": (objectives.soft, True),
}


def check_token(experiment: Experiment, student: Classifier) -> None:
    """Refuses a distillation by a token that `student` lacks."""
    _, token = _IMITATIONS[experiment.distill_loss]
    if token and not getattr(student, "distilled", False):
        raise UserError(
            f"distill_loss={experiment.distill_loss!r} needs a student with a distillation token, such as DeiT-Ti_16; "
            "use soft or hard"
        )


def objective_of(experiment: Experiment, model: Classifier, taught: bool) -> Objective:
    """What `model` is trained towards by what it and a teacher (if it is `taught`) answer; blocks are matched apart from it."""
    if not taught:
        return objectives.classification(experiment.label_smoothing)
    imitate, token = _IMITATIONS[experiment.distill_loss]
    check_token(experiment, model)
    steps, kind = experiment.total_steps, experiment.distill_decay
    alpha = schedules.decay(experiment.distill_weight, experiment.distill_weight_end, steps, kind)
    begin, end = experiment.distill_temperature, experiment.distill_temperature_end
    temperature = schedules.decay(begin, end, steps, kind)
    return objectives.distillation(alpha, temperature, experiment.label_smoothing, imitate, token)


def _objective(experiment: Experiment, model: Classifier, teacher: Teacher | None) -> Objective:
    objective = objective_of(experiment, model, teacher is not None)
    if teacher is None or not experiment.feature_weight:
        return objective
    match = features.matching(experiment, model, teacher)
    weight, kind = experiment.feature_weight, experiment.feature_loss
    return objectives.with_features(objective, weight, kind, match.pairs, match.to_student)


def _meta(
    experiment: Experiment, dataset: Dataset, start: Start | None, teacher: Teacher | None
) -> checkpoint.Meta:
    stage = "distilled" if teacher else "scratch" if experiment.shape_of else "trained"
    return run_meta(
        experiment,
        dataset,
        stage=stage,
        pretrained_hash=start.weights_hash if start else "",
        teacher_hash=teacher.weights_hash if teacher else "",
        # The images that a cut was made from stay part of what it becomes.
        calibration_hash=start.calibration_hash if start else "",
    )


def run_meta(experiment: Experiment, dataset: Dataset, stage: str, **hashes: str) -> checkpoint.Meta:
    """What a checkpoint says of its run (`Card.meta`); hashes that are not given are of nothing."""
    return {
        "stage": stage,
        "dataset": dataset.name,
        "data_dir": experiment.data_dir,
        "bad_images": experiment.bad_images,
        "fingerprint": dataset.fingerprint,
        "config_text": resolved_text(experiment),
        "config_hash": config_hash(experiment),
        **dict.fromkeys(("pretrained_hash", "teacher_hash", "calibration_hash"), ""),
        **hashes,
    }
