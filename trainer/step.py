"""The training step and the evaluation step: each one jitted function over plain pytrees.

What is learnt is a task's (`classifying`). Randomness is derived from the seed and the step number, so a resumed run needs no saved
random state.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from serving.preprocess import PreprocessSpec
from trainer.accumulation import mean_over
from trainer.config import Experiment
from trainer.description import Classifier, Model
from trainer.distributed import mesh as meshes
from trainer.distributed import rules
from trainer.guard import SKIPPED, Recent, chosen, judge, nothing_seen
from trainer.models.build import Params, bind, init_params
from trainer.objectives import accuracy
from trainer.optim import schedule

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
_FIRST = 5  # answers among which a label counts for top-5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes: step (scalar int32), parameters, what the optimiser keeps, and what steps were like of late.

    `ema` is the moving average of the parameters, None without one.
    """

    step: jax.Array
    params: Params
    opt: Any
    ema: Params | None
    recent: Recent

    @property
    def evaluated(self) -> Params:
        """The parameters that evaluation and export take."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A teacher: its description and its parameters, which no step changes and no checkpoint holds."""

    model: Classifier
    params: Params


def normalise(images: jax.Array, spec: PreprocessSpec) -> jax.Array:
    """uint8 (B, H, W, C) → float32, per channel (x - mean) / std; the device's twin of `serving.preprocess.normalise`."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (spec.mean, spec.std))
    return (images.astype(jnp.float32) - mean) / std


def init_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, seed: int, with_ema: bool = False
) -> tuple[TrainState, Any, list[str]]:
    """A fresh state born in its shards; returns it with its shardings and what the mesh could not divide."""
    create, _, placed, reports = planned_state(model, tx, mesh, seed, with_ema)
    return jax.jit(create, out_shardings=placed)(), placed, reports


def planned_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, seed: int, with_ema: bool = False
) -> tuple[Callable[[], TrainState], TrainState, Any, list[str]]:
    """(what makes a fresh state, its shapes in their shards, its shardings, parameters that no axis divides); none is made yet."""

    def create() -> TrainState:
        params = init_params(model, seed)
        ema = jax.tree.map(jnp.copy, params) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema, nothing_seen())

    shapes = jax.eval_shape(create)
    placed, _ = rules.shardings(shapes, mesh)
    # What is kept for a parameter follows its rule, and need not be said again.
    return create, rules.in_shards(shapes, placed), placed, rules.shardings(shapes.params, mesh)[1]


class Task(Protocol):
    """What a step learns. `draws`: whether it needs keys."""

    @property
    def draws(self) -> bool: ...

    def seen(self, batch: Batch, step: jax.Array) -> Batch:
        """The whole batch as models see it."""
        ...

    def loss(
        self, params: Params, part: Batch, key: jax.Array | None, step: jax.Array, frozen: Params | None
    ) -> tuple[jax.Array, Metrics]:
        """(mean loss, other means) of a part of what is `seen`; `frozen` are parameters that no step changes."""
        ...


def make_train_step(
    experiment: Experiment, task: Task, tx: optax.GradientTransformation, state_shardings: Any, mesh: Mesh
) -> jax.stages.Wrapped:
    """(state, batch, frozen parameters) → (next state, metrics: loss, the task's, grad_norm, lr, and whether it was skipped).

    The state is donated. Batches are cut over data and fsdp.
    """
    rate, parts = schedule(experiment), experiment.accum_steps

    def step(state: TrainState, batch: Batch, frozen: Params | None) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.key(experiment.seed), state.step) if task.draws else None

        def of_part(part: Batch, number: jax.Array | int) -> Any:
            """((loss, other means), gradients) of a part of the batch."""
            key = jax.random.fold_in(step_key, number) if step_key is not None and parts > 1 else step_key
            loss = partial(task.loss, part=part, key=key, step=state.step, frozen=frozen)
            return jax.value_and_grad(loss, has_aux=True)(state.params)

        (loss, others), gradients = mean_over(parts, of_part, task.seen(batch, state.step))
        norm = optax.tree.norm(gradients)
        updates, opt = tx.update(gradients, state.opt, state.params)
        taken, recent = judge(state.recent, loss, norm, experiment.skip_sigmas)
        learnt = optax.apply_updates(state.params, updates)
        params, opt = chosen(taken, (learnt, opt), (state.params, state.opt))
        ema = None if state.ema is None else _averaged(state.ema, params, experiment.ema_decay, state.step)
        metrics = {"loss": loss, **others, "grad_norm": norm, "lr": rate(state.step), SKIPPED: ~taken}
        return TrainState(state.step + 1, params, opt, ema, recent), metrics

    out = (state_shardings, meshes.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _averaged(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """The moving average behind `step`; a young one forgets its beginnings faster: by (1 + step) / (10 + step) at most."""
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    # In this form what does not change stays as it is, to the bit.
    return jax.tree.map(lambda mean, new: mean + (1 - kept) * (new - mean), ema, params)


def make_answer_step(model: Classifier, spec: PreprocessSpec, mesh: Mesh) -> Callable[[Params, Batch], Batch]:
    """(parameters, batch of images with their places "row") → their logits (B, classes) and places, on every device."""

    def step(params: Params, batch: Batch) -> Batch:
        logits = bind(model, params)(normalise(batch["image"], spec))
        return {"logits": logits, "row": batch["row"]}

    return jax.jit(step, out_shardings=meshes.replicated(mesh))


def make_eval_step(model: Classifier, spec: PreprocessSpec, mesh: Mesh) -> Callable[[Params, Batch], Metrics]:
    """(parameters, batch with a mask) → sums over the real examples: loss, correct, count. Padding counts nothing."""

    def step(params: Params, batch: Batch) -> Metrics:
        logits = bind(model, params)(normalise(batch["image"], spec))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        mask = batch["mask"]
        return {
            "loss": (losses * mask).sum(),
            "correct": (accuracy(logits, batch["label"]) * mask).sum(),
            "count": mask.sum(),
        }

    return jax.jit(step, out_shardings=meshes.replicated(mesh))


def make_judge_step(model: Classifier, spec: PreprocessSpec, mesh: Mesh) -> Callable[[Params, Batch], Batch]:
    """(parameters, batch with a mask) → what `trainer.judging.Answers` holds of each row, and the mask, on every device."""

    def step(params: Params, batch: Batch) -> Batch:
        logits, label = bind(model, params)(normalise(batch["image"], spec)), batch["label"]
        own = jnp.take_along_axis(logits, label[:, None], axis=-1)
        return {
            "label": label,
            "predicted": logits.argmax(axis=-1),
            "confidence": jax.nn.softmax(logits).max(axis=-1),
            "within5": (logits > own).sum(axis=-1) < _FIRST,
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "mask": batch["mask"],
        }

    return jax.jit(step, out_shardings=meshes.replicated(mesh))
