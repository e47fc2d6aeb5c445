"""What a run learns, by what its parts are: the task of its steps, and the step that evaluates it."""

from collections.abc import Callable

from jax.sharding import Mesh

from trainer.classifying import Classifying
from trainer.contrasting import Contrasting, make_pair_eval_step
from trainer.description import Classifier, TwoTowers
from trainer.models.build import Params
from trainer.parts import Parts
from trainer.step import Batch, Metrics, Task, make_eval_step


def task_of(parts: Parts, teacher: Classifier | None, mesh: Mesh) -> Task:
    """`teacher` is asked in the step, None where there is none or its answers are stored."""
    card, experiment = parts.card, parts.experiment
    if isinstance(card.description, TwoTowers):
        return Contrasting(experiment, card.description, card.preprocess)
    assert parts.objective is not None  # a classifier's
    return Classifying(experiment, card.description, card.preprocess, parts.objective, teacher, mesh)


def eval_step_of(parts: Parts, mesh: Mesh) -> Callable[[Params, Batch], Metrics]:
    """Sums over the examples of a batch: loss, correct, count."""
    card = parts.card
    if isinstance(card.description, TwoTowers):
        loss = parts.experiment.contrastive_loss
        return make_pair_eval_step(card.description, card.preprocess, loss, mesh)
    return make_eval_step(card.description, card.preprocess, mesh)
