"""What a configuration trains, known from descriptions alone: no data set is opened and no weights are read."""

import dataclasses

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import description
from trainer.config import Experiment
from trainer.data.datasets import channels_of, classes_of
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
    for refused, problem in (
        (experiment.pairs, f"{experiment.dataset} are images with texts; plans are of classifiers"),
        (
            bool(experiment.teacher_cache),
            "stored answers come with the batch; leave teacher_cache empty to plan the step that asks",
        ),
    ):
        if refused:
            raise UserError(f"no plan: {problem}")
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
    channels = channels_of(experiment.dataset)
    named = description.named(experiment.model, size, channels, count)
    student = description.require_classifier(named, "training")
    teacher = None
    if experiment.distils:
        if not experiment.teacher_model:
            raise UserError("a plan needs config.teacher_model, the name of the teacher's model")
        named = description.named(experiment.teacher_model, size, channels, count)
        teacher = description.require_classifier(named, "a teacher")
    scale = (127.5,) * channels
    spec = PreprocessSpec("L" if channels == 1 else "RGB", size[0], size[1], scale, scale)
    return Described(
        experiment, student, teacher, spec, objective_of(experiment, student, teacher is not None)
    )
