"""A plan as figures and as a table: does it fit, what moves between chips, and the least time that a step can take."""

from typing import Any

import jax
from jax.experimental import topologies

from serving.command import UserError
from tools.plan.chips import Topology
from tools.plan.compiled import Compiled, DoesNotFitError, compiled, largest_batch, mesh_on
from tools.plan.described import Described, described
from trainer import description
from trainer.config import Experiment
from trainer.rates import flops_per_image

_MIB = 2**20


def plan(experiment: Experiment, where: Topology, classes: int, largest: bool) -> dict[str, Any]:
    """Compiles the step of `experiment` for `where`.

    Raises:
      UserError: when the configuration needs what is not there, or the mesh does not fit the topology.
    """
    parts = described(experiment, classes)
    mesh = mesh_on(parts, _devices(where), where.slices)
    found, reason = _try(parts, mesh)
    fits = found is not None and found.peak_bytes <= where.chip.hbm_bytes
    result: dict[str, Any] = {
        "model": experiment.model,
        "teacher": experiment.teacher_model if parts.teacher else "",
        "topology": f"{where.chip.name}:{'x'.join(map(str, where.shape))}",
        "slices": where.slices,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch": experiment.batch,
        "params": description.param_count(parts.student),
        "fits": fits,
        "hbm_mib": where.chip.hbm_bytes / _MIB,
        "why_not": reason,
    }
    if found is not None:
        result |= _figures(parts, where, mesh.size, found)
    if largest:
        batch, its_step = largest_batch(parts, mesh, found, where.chip.hbm_bytes)
        result["largest_batch"] = batch
        result["largest_batch_peak_mib"] = its_step.peak_bytes / _MIB if its_step else None
    return result


def _try(parts: Described, mesh: jax.sharding.Mesh) -> tuple[Compiled | None, str]:
    try:
        return compiled(parts, mesh), ""
    except DoesNotFitError as error:
        return None, str(error)


def _devices(where: Topology) -> list[Any]:
    options: dict[str, Any] = {"num_slices": where.slices} if where.slices > 1 else {}
    if where.chip.cores_as:
        options["chip_config_name"] = where.chip.cores_as
    try:
        return list(topologies.get_topology_desc(where.name, "tpu", **options).devices)
    except Exception as error:  # libtpu says what it knows no such topology by
        reason = " ".join(str(error).split())[:200]
        if "lockfile" in str(error):
            raise UserError("another process uses libtpu on this machine; wait until it has ended") from error
        raise UserError(
            f"libtpu has no topology {where.name}: {reason}; give one that can be leased"
        ) from error


def _figures(parts: Described, where: Topology, devices: int, found: Compiled) -> dict[str, Any]:
    """What the compiler says, and a roofline: no step is faster than its operations, its memory or its links allow."""
    flops = flops_per_image(parts.student, parts.teacher) * parts.experiment.batch
    moved = sum(total.sent_bytes for total in found.collectives.values())
    # Each byte of state is read and written once at least, and each temporary one written and read.
    touched = 2 * found.state_bytes + found.teacher_bytes + found.batch_bytes + 2 * found.temporary_bytes
    times_ms = {
        "compute": 1e3 * flops / devices / where.chip.flops,
        "memory": 1e3 * touched / where.chip.hbm_bandwidth,
        "links": 1e3 * moved / where.chip.ici_bandwidth,
    }
    step_ms = max(times_ms.values())
    return {
        "params_mib": found.params_bytes / _MIB,
        "optimiser_mib": (found.state_bytes - found.params_bytes) / _MIB,
        "teacher_mib": found.teacher_bytes / _MIB,
        "temporary_mib": found.temporary_bytes / _MIB,
        "peak_mib": found.peak_bytes / _MIB,
        "collectives": {
            kind: {"count": total.count, "mib": total.bytes / _MIB}
            for kind, total in sorted(found.collectives.items())
        },
        "flops": flops,
        "least_ms": times_ms,
        "step_ms": step_ms,
        "images_per_s": 1e3 * parts.experiment.batch / step_ms,
        "mfu_bound": times_ms["compute"] / step_ms,
        "replicated": found.replicated,
        "compile_s": found.seconds,
    }


def table(result: dict[str, Any]) -> str:
    """For people."""
    whose = f"{result['teacher']} → {result['model']}" if result["teacher"] else result["model"]
    axes = " ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    slices = f" × {result['slices']} slices" if result["slices"] > 1 else ""
    lines = [
        f"{whose} on {result['topology']}{slices}, {result['devices']} chips, mesh {axes}, batch {result['batch']}"
    ]
    if "peak_mib" in result:
        verdict = "fits" if result["fits"] else "does not fit"
        lines += [
            f"memory of a chip   {result['peak_mib']:,.0f} of {result['hbm_mib']:,.0f} MiB: {verdict}",
            f"  parameters       {result['params_mib']:,.1f} MiB, optimiser {result['optimiser_mib']:,.1f} MiB, teacher "
            f"{result['teacher_mib']:,.1f} MiB, temporary {result['temporary_mib']:,.1f} MiB",
        ]
        lines += [
            f"{kind:<19}{total['count']} times, {total['mib']:,.1f} MiB"
            for kind, total in result["collectives"].items()
        ]
        least = ", ".join(f"{name} {value:.2f}" for name, value in result["least_ms"].items())
        lines += [
            f"operations         {result['flops'] / 1e12:,.1f} TFLOP a step",
            f"step, at least     {result['step_ms']:.2f} ms ({least}): {result['images_per_s']:,.0f} images/s, MFU at most "
            f"{result['mfu_bound']:.0%}",
        ]
        lines += [f"replicated         {line}" for line in result["replicated"]]
        if result["slices"] > 1:
            lines.append(
                "                   what crosses slices is counted at the speed of links inside one; it is slower"
            )
    else:
        lines.append(f"does not fit       {result['why_not']}")
    if "largest_batch" in result:
        lines.append(f"largest batch      {result['largest_batch']}")
    return "\n".join(lines)
