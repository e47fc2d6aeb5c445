"""What a configuration trains, known from descriptions alone: no data set is opened and no weights are read."""

import dataclasses

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import description
from trainer.config import Experiment
from trainer.data.datasets import classes_of
from trainer.description import Classifier
from trainer.objectives import Objective
from trainer.parts import objective_of

_STEPS = 10_000  # total_steps of a run in epochs: how long it takes changes no step


@dataclasses.dataclass(frozen=True)
class Described:
    """A training step's parts."""

    experiment: Experiment
    student: Classifier
    teacher: Classifier | None
    preprocess: PreprocessSpec
    objective: Objective


def described(experiment: Experiment, classes: int) -> Described:
    """The parts that `experiment` would train, for so many classes (0: as its data set has).

    Raises:
      UserError: when they are not known by names alone.
    """
    if not experiment.total_steps:
        experiment = experiment.in_steps(max(1, _STEPS * experiment.batch))
    count = classes or classes_of(experiment.dataset)
    if not count:
        raise UserError(
            f"how many classes {experiment.dataset} has is not known without opening it; give --classes"
        )
    if not experiment.model:
        raise UserError("a plan needs config.model, a model's name; a checkpoint's shape is not read")
    if experiment.feature_weight:
        raise UserError("a plan knows no weights to match features by; leave feature_weight at 0")
    size = (experiment.image_size, experiment.image_size)
    student = description.require_classifier(description.named(experiment.model, size, 3, count), "training")
    teacher = None
    if experiment.distils and not experiment.teacher_cache:
        if not experiment.teacher_model:
            raise UserError("a plan needs config.teacher_model, the name of the teacher's model")
        named = description.named(experiment.teacher_model, size, 3, count)
        teacher = description.require_classifier(named, "a teacher")
    scale = (127.5,) * 3
    spec = PreprocessSpec("RGB", size[0], size[1], scale, scale)
    return Described(
        experiment, student, teacher, spec, objective_of(experiment, student, teacher is not None)
    )
