"""One compression: teacher's checkpoint in, cut and repaired checkpoint, plan, scores and report out."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving import preprocess
from serving.command import UserError
from trainer import checkpoint, description
from trainer.checkpoint import Loaded
from trainer.compress import allocate, goals, report, search, width
from trainer.compress import plan as plans
from trainer.compress import scores as scoring
from trainer.compress.allocate import Cost, Rounding
from trainer.compress.moments import Array
from trainer.compress.plan import Plan
from trainer.compress.repair import Repair, Seen, cut
from trainer.compress.scores import Scores
from trainer.compress.search import Candidate, Judge, Teacher
from trainer.config import Compression, config_hash, resolved_text
from trainer.data.datasets import open_dataset
from trainer.data.source import Dataset
from trainer.evaluation import check_classes

_COSTS: dict[str, Cost] = {"params": description.param_count, "macs": description.macs}


def compress(config: Compression, teacher_path: Path, workdir: Path) -> dict[str, object]:
    """Cuts the teacher as `config` says and writes the result to `workdir`.

    Returns parameters and MACs before and after, asked and actual, and validation accuracy of the teacher, of the same cut
    without repair, and of the result.

    Raises:
      UserError: for bad input, before anything is written.
    """
    began_s = time.monotonic()
    if checkpoint.steps(workdir):
        raise UserError(f"{workdir} already holds a checkpoint; give another --workdir or remove it")
    loaded = checkpoint.load(teacher_path)
    data = open_dataset(config.dataset, config.data_dir)
    check_classes(loaded, data)
    images, calibration_hash = _calibration(config, loaded, data)
    how = Repair(config.ridge, config.calibration.batch)
    model = description.require_vit(loaded.description, "compression")
    teacher = Teacher(model, loaded.params, images, how)
    rounding = Rounding(config.round_mlp, config.round_head_dim, config.round_width)
    goal = _check_goal(config, teacher.model, rounding)  # before what takes long
    scores = _scores(config, teacher)
    plan, candidates, met = _choose(config, teacher, scores, rounding, goal)
    seen = Seen(teacher.model, teacher.params, images, how.batch, keep=False)
    params, remarks = cut(teacher.model, teacher.params, plan, images, how, seen)
    sliced, _ = cut(teacher.model, teacher.params, plan, images, dataclasses.replace(how, fit=False), seen)

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
    _write(workdir, plan, scores, report.markdown(result, plan, teacher.model, candidates))
    if shape.width < teacher.model.width:  # for who distils: the way from the teacher's stream to this one's
        to_narrow = width.projection(seen.directions, shape.width).astype(np.float32)
        np.savez(workdir / width.FILE, projection=to_narrow)
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
    heads, neurons = ([getattr(block, name) for block in teacher.blocks] for name in ("num_heads", "mlp_dim"))
    most = {"num_layers": len(teacher.blocks), "num_heads": max(heads), "mlp_dim": max(neurons)}
    for name, has in most.items():
        asked = getattr(config.shape, name)
        if asked > has:
            raise UserError(f"shape.{name}={asked} is above the teacher's {has}; cutting only makes smaller")
    return goals.of(config.budget, teacher, rounding)


def _choose(
    config: Compression, teacher: Teacher, scores: Scores, rounding: Rounding, goal: goals.Goal | None
) -> tuple[Plan, list[Candidate], dict[str, object]]:
    """The plan, the candidates that were tried last, and how a measured budget was met."""
    judge = Judge(teacher)
    cost, budget = _budget(config, teacher.model)
    if goal or budget:
        spend = _spender(config, teacher, scores, rounding, judge)
        if goal:
            within = goal.spend
            found, met = goals.reach(goal, teacher.model, lambda limit: spend(within, limit))
            return found[0].plan, found, met
        found = spend(cost, budget)
        return found[0].plan, found, {}
    shape, has = config.shape, len(teacher.model.blocks)
    removed = has - shape.num_layers if shape.num_layers else 0
    dropped = set(search.missed_least(teacher, judge)[:removed]) if removed else set()
    return allocate.stated(teacher.model, scores, dropped, shape.num_heads, shape.mlp_dim), [], {}


def _spender(
    config: Compression, teacher: Teacher, scores: Scores, rounding: Rounding, judge: Judge
) -> Callable[[Cost, int], list[Candidate]]:
    """(cost, budget) → candidates, best first, by the search that `config` asks for."""
    if config.search == "uniform":
        return lambda cost, budget: search.uniform(teacher, scores, cost, budget, rounding, judge)
    table = search.measure_losses(teacher, scores, judge)
    return lambda cost, budget: search.to_budget(teacher, scores, table, cost, budget, rounding, judge)


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
    (workdir / plans.FILE).write_text(json.dumps(plan.to_json()) + "\n")
    (workdir / "report.md").write_text(text)
