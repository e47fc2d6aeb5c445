"""The training step of a plan, compiled for a topology; and the largest batch of which that fits."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tools.plan.collectives import Total, collectives
from tools.plan.described import Described
from trainer import optim
from trainer.classifying import Classifying
from trainer.config.fitting import check_batch, sizes_on
from trainer.distributed import mesh as meshes
from trainer.distributed import rules
from trainer.models.build import param_shapes
from trainer.models.computing import in_dtype
from trainer.step import make_train_step, planned_state

_TOO_LARGE = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step, for each device; bytes."""

    state_bytes: int  # parameters, and what the optimiser, the average and the guard keep
    params_bytes: int
    teacher_bytes: int
    batch_bytes: int
    temporary_bytes: int
    peak_bytes: int
    collectives: dict[str, Total]
    replicated: list[str]
    seconds: float


class DoesNotFitError(Exception):
    """The compiler found no way to keep the step within a device's memory; the message is its own."""


def mesh_on(plan: Described, devices: Sequence[jax.Device], slices: int) -> Mesh:
    """The mesh that the configuration asks for, on these devices."""
    shape = dataclasses.replace(plan.experiment.mesh, slices=slices)
    data, fsdp, _ = sizes_on(shape, len(devices))
    check_batch(data * fsdp * slices, plan.experiment.batch, "batch", plan.experiment.accum_steps)
    return meshes.make_mesh(shape, devices)


def compiled(plan: Described, mesh: Mesh) -> Compiled:
    """Compiles the step of `plan`.

    Raises:
      DoesNotFitError: when it does not fit into the devices' memory.
    """
    experiment, tx = plan.experiment, optim.optimiser(plan.experiment)
    _, state, placed, replicated = planned_state(
        plan.student, tx, mesh, experiment.seed, experiment.ema_decay > 0
    )
    teacher = _teacher(plan, mesh)
    task = Classifying(experiment, plan.student, plan.preprocess, plan.objective, plan.teacher, mesh)
    step = make_train_step(experiment, task, tx, placed, mesh)
    batch = _batch(plan, mesh)
    began_s = time.monotonic()
    try:
        done = step.lower(state, batch, teacher).compile()
    except jax.errors.JaxRuntimeError as error:
        if _TOO_LARGE not in str(error):
            raise
        raise DoesNotFitError(" ".join(str(error).split())[:400]) from error
    memory, program = done.memory_analysis(), done.as_text()
    assert memory is not None
    assert program is not None
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        state_bytes=_on_a_device(state),
        params_bytes=_on_a_device(state.params),
        teacher_bytes=_on_a_device(teacher),
        batch_bytes=_on_a_device(batch),
        temporary_bytes=int(memory.temp_size_in_bytes),
        peak_bytes=int(memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs),
        collectives=collectives(program),
        replicated=replicated,
        seconds=time.monotonic() - began_s,
    )


def _teacher(plan: Described, mesh: Mesh) -> Any:
    if plan.teacher is None:
        return None
    kept = param_shapes(plan.teacher)
    shapes = jax.eval_shape(lambda: in_dtype(_zeros(kept), plan.experiment.dtype))
    return rules.in_shards(shapes, rules.shardings(shapes, mesh)[0])


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _batch(plan: Described, mesh: Mesh) -> Any:
    rows, spec = plan.experiment.batch, plan.preprocess
    shapes = {
        "image": jax.ShapeDtypeStruct((rows, spec.height, spec.width, spec.channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    return rules.in_shards(shapes, dict.fromkeys(shapes, meshes.batch_sharding(mesh)))


def _on_a_device(tree: Any) -> int:
    """Bytes of a tree of shapes in their shards on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def largest_batch(
    plan: Described, mesh: Mesh, found: Compiled | None, hbm_bytes: float
) -> tuple[int, Compiled | None]:
    """(the largest batch that fits, of those that doubling and halving the plan's lead to; its step), by compiling.

    `found` is the plan's own step, None where it does not fit.

    0 and None when not even one example for each shard fits.
    """
    least = mesh.shape["data"] * mesh.shape["fsdp"] * plan.experiment.accum_steps
    batch = plan.experiment.batch
    if found is not None and found.peak_bytes <= hbm_bytes:
        while larger := _fitting(_with_batch(plan, 2 * batch), mesh, hbm_bytes):
            batch, found = 2 * batch, larger
        return batch, found
    while batch > least:
        batch = batch // least // 2 * least
        if smaller := _fitting(_with_batch(plan, batch), mesh, hbm_bytes):
            return batch, smaller
    return 0, None


def _fitting(plan: Described, mesh: Mesh, hbm_bytes: float) -> Compiled | None:
    """The step of `plan`; None where it does not fit."""
    try:
        found = compiled(plan, mesh)
    except DoesNotFitError:
        return None
    return found if found.peak_bytes <= hbm_bytes else None


def _with_batch(plan: Described, batch: int) -> Described:
    return dataclasses.replace(plan, experiment=dataclasses.replace(plan.experiment, batch=batch))
