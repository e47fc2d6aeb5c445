"""One compression: teacher's checkpoint in, cut and repaired checkpoint, plan, scores and report out."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import numpy as np

from serving import preprocess
from serving.command import UserError
from trainer import checkpoint, description
from trainer.checkpoint import Loaded
from trainer.compress import goals, report, search, subject, target
from trainer.compress import scores as scoring
from trainer.compress.allocate import Cost, Rounding
from trainer.compress.moments import Array
from trainer.compress.plan import Plan
from trainer.compress.repair import Repair, cut
from trainer.compress.scores import Scores
from trainer.compress.search import Candidate, Judge, Teacher
from trainer.config import Compression, config_hash, resolved_text
from trainer.data.datasets import open_dataset
from trainer.data.source import Dataset

_COSTS: dict[str, Cost] = {"params": description.param_count, "macs": description.macs}


def compress(config: Compression, origin: subject.Origin, workdir: Path) -> dict[str, object]:
    """Cuts the teacher as `config` says and writes the result to `workdir`.

    Returns parameters and MACs before and after, asked and actual, and validation accuracy of the teacher, of the same cut
    without repair, and of the result.

    Raises:
      UserError: for bad input, before anything is written.
    """
    began_s = time.monotonic()
    if checkpoint.steps(workdir):
        raise UserError(f"{workdir} already holds a checkpoint; give another --workdir or remove it")
    data = open_dataset(config.dataset, config.data_dir)
    loaded = subject.load(origin, data)
    images, calibration_hash = _calibration(config, loaded, data)
    how = Repair(config.ridge, config.calibration.batch)
    model = description.require_vit(loaded.description, "compression")
    teacher = Teacher(model, loaded.params, images, how)
    rounding = Rounding(config.round_mlp, config.round_head_dim)
    goal = _check_goal(config, teacher.model, rounding)  # before what takes long
    scores = _scores(config, teacher)
    plan, candidates, met = _choose(config, teacher, scores, rounding, goal)
    params, remarks = cut(teacher.model, teacher.params, plan, images, how)
    sliced, _ = cut(teacher.model, teacher.params, plan, images, dataclasses.replace(how, fit=False))

    shape = plan.shape_of(teacher.model)
    meta = {
        **loaded.meta,
        "stage": "pruned",
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "data_dir": config.data_dir,
        "config_text": resolved_text(config),
        "config_hash": config_hash(config),
        "next_example": 0,
        "teacher_hash": loaded.meta["weights_hash"],
        "calibration_hash": calibration_hash,
        **({"budget": met} if met else {}),
    }
    card = checkpoint.Card(shape, loaded.preprocess, loaded.labels, meta)
    accuracies = {
        name: report.top1(model, weights, loaded.preprocess, data.validation, how.batch)
        for name, model, weights in (
            ("teacher", teacher.model, teacher.params),
            ("cut without repair", shape, sliced),
            ("cut and repaired", shape, params),
        )
    }
    result = _result(config, teacher.model, shape, accuracies, remarks, time.monotonic() - began_s)
    result |= {"budget": met} if met else {}
    if any(dataclasses.astuple(config.shape)):
        asked = target.asked(config.shape, teacher.model)
        result |= {"shape": target.report(teacher.model, asked, shape)}
    _write(workdir, plan, scores, report.markdown(result, plan, teacher.model, candidates))
    checkpoint.save_model(workdir, card, params)  # last: a workdir with a checkpoint is a finished one
    return {**result, "workdir": str(workdir)}


def _calibration(config: Compression, loaded: Loaded, data: Dataset) -> tuple[Array, str]:
    """Normalised training images chosen by the seed, as evaluation prepares them, and the sha256 of their pixels."""
    available, asked = len(data.train.images), config.calibration.examples
    if asked > available:
        raise UserError(
            f"calibration.examples={asked} is above the {available} training images of {data.name}; give fewer"
        )
    chosen = np.random.RandomState(config.seed).permutation(available)[:asked]
    fitted = np.stack(
        [preprocess.fit(data.train.images[index], loaded.preprocess) for index in np.sort(chosen)]
    )
    return preprocess.normalise(fitted, loaded.preprocess), hashlib.sha256(fitted.tobytes()).hexdigest()


def _scores(config: Compression, teacher: Teacher) -> Scores:
    return scoring.score(
        teacher.model, teacher.params, teacher.images, config.score, config.seed, teacher.how.batch
    )


def _check_goal(config: Compression, teacher: description.ViT, rounding: Rounding) -> goals.Goal | None:
    """Refuses a budget or a shape that no cut of the teacher has; a budget that must be measured becomes a goal."""
    cost, budget = _budget(config, teacher)
    if budget:
        search.check_budget(teacher, cost, budget, rounding)
    target.asked(config.shape, teacher)
    return goals.of(config.budget, teacher, rounding)


def _choose(
    config: Compression, teacher: Teacher, scores: Scores, rounding: Rounding, goal: goals.Goal | None
) -> tuple[Plan, list[Candidate], dict[str, object]]:
    """The plan, the candidates that were tried last, and how a measured budget was met."""
    judge = Judge(teacher)
    if goal:
        order = search.missed_least(teacher, judge)
        spend = goal.spend
        found, met = goals.reach(
            goal,
            teacher.model,
            lambda limit: search.to_budget(teacher, scores, spend, limit, rounding, judge, order),
        )
        return found[0].plan, found, met
    cost, budget = _budget(config, teacher.model)
    if budget:
        order = search.missed_least(teacher, judge)
        candidates = search.to_budget(teacher, scores, cost, budget, rounding, judge, order)
        return candidates[0].plan, candidates, {}
    sizes = target.asked(config.shape, teacher.model)
    removed = len(teacher.model.blocks) - sizes.num_layers
    dropped = set(search.missed_least(teacher, judge)[:removed]) if removed else set()
    return target.plan(teacher.model, scores, dropped, sizes), [], {}


def _budget(config: Compression, teacher: description.ViT) -> tuple[Cost, int]:
    """The cost that is limited and its limit; a value of at most 1 is a fraction of the teacher's cost."""
    for name, cost in _COSTS.items():
        value = getattr(config.budget, name)
        if value:
            return cost, int(value * cost(teacher)) if value <= 1 else int(value)
    return description.param_count, 0


def _result(
    config: Compression,
    teacher: description.ViT,
    model: description.ViT,
    top1: dict[str, float],
    remarks: list[str],
    seconds: float,
) -> dict[str, object]:
    sizes = {
        name: {"teacher": cost(teacher), "asked": getattr(config.budget, name) or None, "actual": cost(model)}
        for name, cost in _COSTS.items()
    }
    return {
        "stage": "pruned",
        **sizes,
        "validation_top1": top1,
        "remarks": remarks,
        "seconds": round(seconds, 1),
    }


def _write(workdir: Path, plan: Plan, scores: Scores, text: str) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    np.savez(workdir / "scores.npz", **scoring.to_arrays(scores))  # type: ignore[arg-type]
    (workdir / "plan.json").write_text(json.dumps(plan.to_json()) + "\n")
    (workdir / "report.md").write_text(text)
