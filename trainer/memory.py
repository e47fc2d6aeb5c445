"""What to do when a step does not fit into memory, in one line."""

import contextlib
import math
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from serving.command import UserError
from trainer.config import Experiment

_TOO_LARGE = "RESOURCE_EXHAUSTED"


@contextlib.contextmanager
def explained(refusal: Callable[[jax.errors.JaxRuntimeError], UserError | None]) -> Iterator[None]:
    """Around what may not fit: its failure becomes what `refusal` makes of it, if that knows it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        known = refusal(error)
        if known is None:
            raise
        raise known from error


def refusal(error: jax.errors.JaxRuntimeError, experiment: Experiment, mesh: Mesh) -> UserError | None:
    """What to tell the user of a step that failed with `error`; None when it was not for want of memory."""
    if _TOO_LARGE not in str(error):
        return None
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch, parts, whole = experiment.batch, experiment.accum_steps, experiment.pairs
    ways = []
    if batch % (shards * parts * 2) == 0 and not whole:
        ways.append(f"--config.accum_steps={parts * 2} (the same learning, in parts)")
    if experiment.remat == "none" and not whole:
        ways.append("--config.remat=blocks (the same learning, about a third slower)")
    if batch // 2 >= shards and batch // 2 % (shards * parts) == 0:
        ways.append(f"--config.batch={batch // 2} --config.base_lr={_scaled(experiment):.3g}")
    if not ways:
        ways.append(f"a mesh with more than {shards} data shards, or larger fsdp or model axes")
    return UserError(
        f"out of memory: a step of batch={batch} in accum_steps={parts} parts does not fit ({_reason(error)}); "
        f"use {', or '.join(ways)}"
    )


def refusal_of_state(error: jax.errors.JaxRuntimeError, mesh: Mesh) -> UserError | None:
    """Likewise of what a run keeps: parameters, what the optimiser keeps for them, a teacher."""
    if _TOO_LARGE not in str(error):
        return None
    return UserError(
        f"out of memory: parameters, what the optimiser keeps and the teacher do not fit ({_reason(error)}); cut them with "
        f"a larger --config.mesh.fsdp (now {mesh.shape['fsdp']}) or --config.mesh.model, or keep the teacher's answers in "
        "--config.teacher_cache"
    )


def refusal_of_evaluation(error: jax.errors.JaxRuntimeError, experiment: Experiment) -> UserError | None:
    """Likewise of a batch of evaluation."""
    if _TOO_LARGE not in str(error):
        return None
    return UserError(
        f"out of memory: evaluating batch_eval={experiment.batch_eval} images at a time does not fit ({_reason(error)}); use "
        f"--config.batch_eval={max(1, experiment.batch_eval // 2)}"
    )


def _reason(error: jax.errors.JaxRuntimeError) -> str:
    return str(error).split("\n")[0].strip()[:160]


def _scaled(experiment: Experiment) -> float:
    """The learning rate for half the batch: half of it with SGD (arXiv:1706.02677), else 1/√2 of it (arXiv:2205.10287)."""
    return experiment.base_lr * (0.5 if experiment.optim == "sgd" else math.sqrt(0.5))
