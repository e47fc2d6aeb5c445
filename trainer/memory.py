"""What to do when a step does not fit into memory, in one line."""

import math

import jax
from jax.sharding import Mesh

from serving.command import UserError
from trainer.config import Experiment

_TOO_LARGE = "RESOURCE_EXHAUSTED"


def refusal(error: jax.errors.JaxRuntimeError, experiment: Experiment, mesh: Mesh) -> UserError | None:
    """What to tell the user of a step that failed with `error`; None when it was not for want of memory."""
    if _TOO_LARGE not in str(error):
        return None
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch, parts = experiment.batch, experiment.accum_steps
    ways = []
    if batch % (shards * parts * 2) == 0:
        ways.append(f"--config.accum_steps={parts * 2} (the same learning, in parts)")
    if experiment.remat == "none":
        ways.append("--config.remat=blocks (the same learning, about a third slower)")
    if batch // 2 >= shards and batch // 2 % (shards * parts) == 0:
        ways.append(f"--config.batch={batch // 2} --config.base_lr={_scaled(experiment):.3g}")
    if not ways:
        ways.append(f"a mesh with more than {shards} data shards, or larger fsdp or model axes")
    reason = str(error).split("\n")[0].strip()[:160]
    return UserError(
        f"out of memory: a step of batch={batch} in accum_steps={parts} parts does not fit ({reason}); use {', or '.join(ways)}"
    )


def _scaled(experiment: Experiment) -> float:
    """The learning rate for half the batch: half of it with SGD (arXiv:1706.02677), else 1/√2 of it (arXiv:2205.10287)."""
    return experiment.base_lr * (0.5 if experiment.optim == "sgd" else math.sqrt(0.5))
