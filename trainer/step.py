"""The training step and the evaluation step: each one jitted function over plain pytrees.

The teacher's forward pass is inside the training step, on the very images the student sees, unless its answers come with the
batch. Randomness is derived from the seed and the step number, so a resumed run needs no saved random state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from serving.preprocess import PreprocessSpec
from trainer import cached_logits, mixing
from trainer.accumulation import mean_over
from trainer.config import Experiment
from trainer.data.global_batch import input_share
from trainer.description import Classifier
from trainer.distributed import mesh as meshes
from trainer.distributed import rules
from trainer.forward import Forward
from trainer.guard import SKIPPED, Recent, chosen, judge, nothing_seen
from trainer.models.build import Params, bind, init_params
from trainer.models.outputs import Outputs
from trainer.objectives import Objective, accuracy
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
    model: Classifier, tx: optax.GradientTransformation, mesh: Mesh, seed: int, with_ema: bool = False
) -> tuple[TrainState, Any, list[str]]:
    """A fresh state born in its shards; returns it with its shardings and what the mesh could not divide."""
    create, _, placed, reports = planned_state(model, tx, mesh, seed, with_ema)
    return jax.jit(create, out_shardings=placed)(), placed, reports


def planned_state(
    model: Classifier, tx: optax.GradientTransformation, mesh: Mesh, seed: int, with_ema: bool = False
) -> tuple[Callable[[], TrainState], TrainState, Any, list[str]]:
    """(what makes a fresh state, its shapes in their shards, its shardings, what no axis divides); nothing is made yet."""

    def create() -> TrainState:
        params = init_params(model, seed)
        ema = jax.tree.map(jnp.copy, params) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema, nothing_seen())

    shapes = jax.eval_shape(create)
    placed, reports = rules.shardings(shapes, mesh)
    in_shards = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placed
    )
    return create, in_shards, placed, reports


def make_train_step(
    experiment: Experiment,
    model: Classifier,
    spec: PreprocessSpec,
    tx: optax.GradientTransformation,
    objective: Objective,
    teacher: Classifier | None,
    state_shardings: Any,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """(state, batch, teacher's parameters) → (next state, its metrics: loss, top1, grad_norm, lr, and whether it was skipped).

    The state is donated. Batches are {"image": uint8 (B, H, W, C), "label": int32 (B,)}, cut over data and fsdp; with the
    teacher's stored answers, if any, as `cached_logits` reads them.
    """
    view, forward = _view(experiment, spec, model.num_classes, mesh), Forward.of(experiment)
    rate = schedule(experiment)

    def step(state: TrainState, batch: Batch, teacher_params: Params | None) -> tuple[TrainState, Metrics]:
        images, labels = view(batch, state.step)
        step_key = jax.random.fold_in(jax.random.key(experiment.seed), state.step) if forward.draws else None

        def of_part(part: Batch, number: jax.Array | int) -> Any:
            """((loss, accuracy), gradients), means over a part of the batch."""
            images, key = part["image"], step_key
            if step_key is not None and experiment.accum_steps > 1:
                key = jax.random.fold_in(step_key, number)
            taught = _taught(part, images, model.num_classes, forward, teacher, teacher_params)

            def answer(params: Params) -> Outputs:
                return forward.outputs(model, params, images, key)

            def rounded(params: Params) -> Outputs:
                return forward.outputs(model, params, images, key, rounded=True)

            def mean_loss(params: Params) -> tuple[jax.Array, jax.Array]:
                last = state.step >= experiment.total_steps - experiment.qat_steps
                student = (
                    jax.lax.cond(last, rounded, answer, params) if experiment.qat_steps else answer(params)
                )
                losses = objective(student, part["targets"], taught, state.step)
                return losses.mean(), accuracy(student.logits, part["label"]).mean()

            return jax.value_and_grad(mean_loss, has_aux=True)(state.params)

        viewed = {**batch, "image": images, "targets": labels}
        (loss, top1), gradients = mean_over(experiment.accum_steps, of_part, viewed)
        norm = optax.tree.norm(gradients)
        updates, opt = tx.update(gradients, state.opt, state.params)
        taken, recent = judge(state.recent, loss, norm, experiment.skip_sigmas)
        learnt = optax.apply_updates(state.params, updates)
        params, opt = chosen(taken, (learnt, opt), (state.params, state.opt))
        ema = None if state.ema is None else _averaged(state.ema, params, experiment.ema_decay, state.step)
        metrics = {"loss": loss, "top1": top1, "grad_norm": norm, "lr": rate(state.step), SKIPPED: ~taken}
        return TrainState(state.step + 1, params, opt, ema, recent), metrics

    out = (state_shardings, meshes.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _averaged(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """The moving average behind `step`; a young one forgets its beginnings faster: by (1 + step) / (10 + step) at most."""
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, new: kept * mean + (1 - kept) * new, ema, params)


def _view(
    experiment: Experiment, spec: PreprocessSpec, num_classes: int, mesh: Mesh
) -> Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]:
    """(batch, step) → what student and teacher see: normalised images, and labels (B, classes); both mixed, where that is on."""

    def view(batch: Batch, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = normalise(batch["image"], spec), jax.nn.one_hot(batch["label"], num_classes)
        alphas = (experiment.mixup, experiment.cutmix)
        if not any(alphas):
            return images, labels
        share = mixing.own_share(experiment.seed, step, (spec.height, spec.width), *alphas)
        others = mixing.partners(len(labels), input_share(mesh)[1])
        return mixing.mixed(images, others, share), mixing.mixed(labels, others, share.mean())

    return view


def _taught(
    batch: Batch,
    images: jax.Array,
    num_classes: int,
    forward: Forward,
    teacher: Classifier | None,
    params: Params | None,
) -> Outputs | None:
    """What the teacher says of `images`: as it was stored, or by asking it."""
    if cached_logits.LOGITS in batch:
        return Outputs(cached_logits.dense(batch, num_classes))
    if teacher is None or params is None:
        return None
    return jax.lax.stop_gradient(forward.outputs(teacher, params, images))


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
