"""From a configuration to the parts of a run: data, model, first weights, teacher, objective.

This is where names and paths become objects; training itself receives the objects.
"""

import dataclasses
from typing import Literal

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, description, objectives
from trainer.checkpoint import Card, Loaded
from trainer.config import Experiment, config_hash, resolved_text
from trainer.data.datasets import open_dataset
from trainer.data.source import Dataset
from trainer.description import Classifier
from trainer.models.build import Params
from trainer.objectives import Objective
from trainer.start import Start, start_from


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run trains on, from, and towards."""

    dataset: Dataset
    card: Card
    pretrained: Params | None
    teacher: Loaded | None
    objective: Objective


def assemble(experiment: Experiment) -> Parts:
    """Opens everything that `experiment` names.

    Raises:
      UserError: for an unknown dataset or model, an unreadable checkpoint, or parts that do not fit together.
    """
    dataset = open_dataset(experiment.dataset, experiment.data_dir)
    teacher = checkpoint.load(experiment.teacher_weights) if experiment.distill_weight > 0 else None
    start = _start(experiment, dataset)
    spec = start.preprocess if start else preprocessing(dataset, experiment.image_size)
    model = start.description if start else _shape(experiment, dataset, spec)
    if teacher is not None:
        _check_teacher(teacher, spec, model)
    card = Card(model, spec, dataset.class_names, _meta(experiment, dataset, start, teacher))
    return Parts(dataset, card, start.params if start else None, teacher, _objective(experiment))


def preprocessing(dataset: Dataset, image_size: int) -> PreprocessSpec:
    """How images of `dataset` become model input: squashed to a square, pixels in [-1, 1] (ViT's own range)."""
    channels = dataset.train.images.shape[-1]
    scale = (127.5,) * channels
    color: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    return PreprocessSpec(color=color, height=image_size, width=image_size, mean=scale, std=scale)


def _start(experiment: Experiment, dataset: Dataset) -> Start | None:
    """The weights to begin with, when there are any."""
    if not experiment.pretrained:
        return None
    start = start_from(experiment.pretrained, experiment.model, experiment.image_size, dataset.class_names)
    channels = dataset.train.images.shape[-1]
    # Grey pictures become colour ones by themselves; colours are not thrown away unasked.
    if channels not in (1, start.preprocess.channels):
        raise UserError(
            f"{dataset.name} has pictures of {channels} channels, the model of {experiment.pretrained} takes grey ones; "
            "use weights that take colours"
        )
    return start


def _shape(experiment: Experiment, dataset: Dataset, spec: PreprocessSpec) -> Classifier:
    """The model to begin without weights."""
    if experiment.shape_of:
        model = checkpoint.load_card(experiment.shape_of).description
        _check_fits(model, dataset, spec, experiment.shape_of)
        return model
    size, channels = (spec.height, spec.width), dataset.train.images.shape[-1]
    named = description.named(experiment.model, size, channels, len(dataset.class_names))
    return description.require_classifier(named, "training")


def _check_fits(model: Classifier, dataset: Dataset, spec: PreprocessSpec, path: str) -> None:
    data = ((spec.height, spec.width), dataset.train.images.shape[-1], len(dataset.class_names))
    if (model.image_size, model.channels, model.num_classes) != data:
        has = f"{model.image_size} pixels, {model.channels} channels, {model.num_classes} classes"
        asked = "{} pixels, {} channels, {} classes".format(*data)
        raise UserError(
            f"the model of {path} is made for {has}, the configuration asks for {asked}; change one of them"
        )


def _check_teacher(teacher: Loaded, spec: PreprocessSpec, model: Classifier) -> None:
    if teacher.preprocess != spec:
        raise UserError(
            f"the teacher was trained with preprocessing {teacher.preprocess}, the student uses {spec}; "
            "both must see the same view of an image"
        )
    if teacher.description.num_classes != model.num_classes:
        raise UserError(
            f"the teacher knows {teacher.description.num_classes} classes, the student {model.num_classes}; they must agree"
        )


def _objective(experiment: Experiment) -> Objective:
    if experiment.distill_weight > 0:
        temperature = experiment.distill_temperature
        return objectives.distillation(experiment.distill_weight, temperature, experiment.label_smoothing)
    return objectives.classification(experiment.label_smoothing)


def _meta(
    experiment: Experiment, dataset: Dataset, start: Start | None, teacher: Loaded | None
) -> checkpoint.Meta:
    stage = "distilled" if teacher else "scratch" if experiment.shape_of else "trained"
    return {
        "stage": stage,
        "dataset": dataset.name,
        "data_dir": experiment.data_dir,
        "fingerprint": dataset.fingerprint,
        "config_text": resolved_text(experiment),
        "config_hash": config_hash(experiment),
        "pretrained_hash": start.weights_hash if start else "",
        "teacher_hash": teacher.meta["weights_hash"] if teacher else "",
        # The images that a cut was made from stay part of what it becomes.
        "calibration_hash": start.calibration_hash if start else "",
    }
