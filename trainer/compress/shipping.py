"""What was made, shipped: exported as a bundle, and that bundle measured afresh against everything that was asked."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from serving.command import UserError
from serving.repository import LoadedModel, Repository
from serving.runtime.select import open_runtime
from serving.timing.profile import all_cores, this_machine
from serving.timing.turns import Timing
from trainer import description
from trainer.compress import goals, latency, nearest, streams
from trainer.compress.choosing import COSTS, least_top1, limit_of
from trainer.compress.given import Given
from trainer.compress.latency import Setting
from trainer.compress.stages import clear
from trainer.data.source import ImageSource
from trainer.description import ViT
from trainer.export import job, subject
from trainer.export.candidate import Refused
from trainer.export.fastest import why_shipped

_MIB = 2**20
_SCORED = 32  # images at a time for accuracy
_TIMED = 3  # a latency above its limit is timed again: on a busy machine noise only adds
_BRIEF_S = 1.0  # of timing where no latency of this machine was limited


@dataclasses.dataclass(frozen=True)
class Limit:
    """One thing that was asked of the shipped bundle, and what was measured; `at_least` instead of at most.

    Not `measured` is what a recorded device is expected to take.
    """

    name: str
    unit: str
    asked: float
    actual: float
    at_least: bool = False
    measured: bool = True

    @property
    def met(self) -> bool:
        """Whether the bundle is within it."""
        return self.actual >= self.asked if self.at_least else self.actual <= self.asked

    @property
    def nearest(self) -> str:
        """What could have been asked, and be met."""
        return nearest.at_most(self.actual) if self.at_least else nearest.at_least(self.actual)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "met": self.met}


def export(given: Given, student: Path, workdir: Path) -> dict[str, Any]:
    """Writes the bundle of the checkpoint under `student`; the exporter's result, and `why` where it chose the precision.

    Raises:
      UserError: when the exported model does not say what the live one says.
    """
    settings = given.config.export
    target = workdir / "models" / settings.name / "1"
    clear(target)  # of an export whose end was never recorded
    precision = given.config.shipped_precision
    request = job.Request(
        target=target,
        precision=precision,
        calibration_examples=min(settings.calibration_examples, len(given.data.train)),
        min_agreement=settings.min_agreement,
        threads=goals.setting_of(given.config.budget).threads,
        batch=given.config.budget.batch,
        # fp32 says what the live model says, and is judged after.
        min_top1=0.0 if precision == "fp32" else least_top1(given),
    )
    try:
        exported: dict[str, Any] = job.export(
            subject.from_checkpoint(str(student), given.config.data_dir), request
        )
    except Refused as error:
        raise UserError(
            f"{error.why}; nothing was exported, and what was cut and trained stays: run the same command again with a lower "
            "--config.export.min_agreement, more --config.export.calibration_examples or --config.export.precision=fp32"
        ) from error
    if "tried" in exported:
        exported["why"] = why_shipped(exported["precision"], exported["tried"], request.batch)
    return exported


def measure(given: Given, bundle: Path) -> dict[str, Any]:
    """The bundle opened as the server opens it, golden answers and all, and measured.

    Returns params, macs, mib, top1 (validation images) and test_top1 (test images, by which nothing is chosen), and latency
    (a `Timing` and under what); of several files, of the one that is served when none is asked for.

    Raises:
      UserError: when the bundle cannot be served.
    """
    served = _served(bundle)
    file, path = served.bundle.model_file()
    said = json_format.MessageToDict(served.bundle.manifest.description)
    model = description.require_vit(description.from_json(said), "compression")
    estimated = _on_device(given, model)
    return {
        "bundle": str(bundle),
        "precision": file.precision,
        "params": description.param_count(model),
        "macs": description.macs(model),
        "mib": path.stat().st_size / _MIB,
        **_latencies(given, path.read_bytes()),
        "top1": _top1(given, served, given.data.validation),
        "test_top1": _top1(given, served, given.data.test),
        **({"device": estimated} if estimated else {}),
    }


def _served(bundle: Path) -> LoadedModel:
    repository = Repository(bundle.parent.parent, open_runtime, all_cores())
    repository.load_all()
    return repository.get(bundle.parent.name)


def _on_device(given: Given, model: ViT) -> dict[str, Any]:
    """What the recorded device is expected to take, where the budget is on one; it is not here to be asked."""
    goal = (
        goals.of(given.config.budget, given.teacher.model, given.rounding)
        if given.config.budget.profile
        else None
    )
    return {"name": goal.name, "expected_ms": goal.measure(model).value, "where": goal.where} if goal else {}


def _latencies(given: Given, content: bytes) -> dict[str, Any]:
    """What the shipped file takes, and the teacher in fp32 under the same setting, each alone."""
    setting, teacher = goals.setting_of(given.config.budget), given.teacher.model
    seconds = given.config.budget.timing_seconds if _limits_this_machine(given) else _BRIEF_S
    whole = latency.time_file(latency.graph_bytes(teacher, "fp32"), teacher, setting, seconds)
    turns, met = 0, False
    while turns < _TIMED and not met:
        shipped = latency.time_file(content, teacher, setting, seconds)
        turns, met = turns + 1, all(limit.met for limit in _latency_limits(given, shipped))
    return {"latency": _timed(shipped, setting, turns), "teacher_latency": _timed(whole, setting, 1)}


def _timed(timing: Timing, setting: Setting, turns: int) -> dict[str, Any]:
    machine = this_machine()
    return {
        **dataclasses.asdict(timing),
        "batch": setting.batch,
        "threads": setting.threads,
        "turns": turns,
        "where": f"{machine['cpu']}, {machine['runtime']}",
    }


def _limits_this_machine(given: Given) -> bool:
    """Whether a latency was limited, and not that of a recorded device."""
    asked = given.config.budget
    return asked.timed and not asked.profile


def _latency_limits(given: Given, timing: Timing) -> list[Limit]:
    pairs = (("latency_p50_ms", timing.p50_ms), ("latency_p99_ms", timing.p99_ms))
    asked = given.config.budget
    if not _limits_this_machine(given):
        return []
    return [Limit(name, "ms", getattr(asked, name), found) for name, found in pairs if getattr(asked, name)]


def _top1(given: Given, served: LoadedModel, source: ImageSource) -> float:
    spec, said = given.loaded.preprocess, []
    for rows in streams.batches(len(source), _SCORED):
        said.append(served.run(source.prepared(range(rows.start, rows.stop), spec)).argmax(axis=-1))
    return float(np.mean(np.concatenate(said) == source.labels))


def limits(given: Given, shipped: dict[str, Any]) -> list[Limit]:
    """Everything that was asked, against what `measure` found."""
    timing = Timing(*(shipped["latency"][field.name] for field in dataclasses.fields(Timing)))
    found = _latency_limits(given, timing)
    if device := shipped.get("device"):
        asked = getattr(given.config.budget, device["name"])
        found.append(Limit(device["name"], "ms", asked, device["expected_ms"], measured=False))
    cost, most = limit_of(given)
    found += [Limit(name, name, most, shipped[name]) for name, one in COSTS.items() if most and one is cost]
    if given.config.budget.mib:
        found.append(Limit("mib", "MiB", given.config.budget.mib, shipped["mib"]))
    if most_lost := given.config.budget.max_drop:
        lost = round(given.teacher_top1 - shipped["top1"], 9)  # of two fractions of thousands of images
        found.append(Limit("max_drop", "of top-1 lost", most_lost, lost))
    elif least := given.config.budget.min_top1:
        found.append(Limit("min_top1", "top-1", least, shipped["top1"], at_least=True))
    return found


def require(found: list[Limit], bundle: str) -> None:
    """Refuses what was shipped when it is not within what was asked; the bundle stays, as the best that was found.

    Raises:
      UserError: naming what was asked, what was measured, and the nearest that is possible.
    """
    missed = [limit for limit in found if not limit.met]
    if missed:
        said = "; ".join(
            f"budget.{one.name}={one.asked:g} was asked, {one.actual:.6g} {one.unit} "
            f"{'measured' if one.measured else 'expected on the recorded device'}"
            for one in missed
        )
        possible = " ".join(f"--config.budget.{one.name}={one.nearest}" for one in missed)
        raise UserError(
            f"what was shipped is not within the budget: {said}; the best that was found lies in {bundle}: the nearest "
            f"possible is {possible}, in another --workdir"
        )
