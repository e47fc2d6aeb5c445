"""Our training step beside that of a checkout of google-research/vision_transformer: same model, batch, optimiser, CPU."""

from pathlib import Path

import numpy as np

from serving.command import UserError
from tools.bench_training import peer
from tools.bench_training.overhead import timed_steps
from tools.bench_training.rounds import alternate, ratios, spread
from tools.plan.described import described
from trainer import config, description, optim, step
from trainer.classifying import Classifying
from trainer.data.global_batch import to_global
from trainer.train import mesh_of

_CLASSES, _SIZE = 1000, 224


def reference(checkout: str, model: str, batch: int, steps: int) -> dict[str, object]:
    """Milliseconds a step of both, and theirs to ours: above 1, ours is the faster.

    Raises:
      UserError: when `checkout` is none, or the environment that runs it is not there.
    """
    if not (Path(checkout) / "vit_jax/train.py").is_file():
        raise UserError(
            f"--reference={checkout or '(empty)'} has no vit_jax/train.py; give a checkout of google-research/vision_transformer"
        )
    peer.require()
    given = {"batch": str(batch), "total_steps": "1000", "warmup_steps": "10", "image_size": str(_SIZE)}
    experiment = config.experiment(f"configs/augreg.py:{model}", list(given.items()))
    parts, mesh = described(experiment, _CLASSES), mesh_of(experiment)
    tx = optim.optimiser(experiment)
    state, placed, _ = step.init_state(parts.student, tx, mesh, 0)
    task = Classifying(experiment, parts.student, parts.preprocess, parts.objective, None, mesh)
    compiled = step.make_train_step(experiment, task, tx, placed, mesh)
    rng = np.random.default_rng(0)
    rows = {
        "image": rng.integers(0, 256, (batch, _SIZE, _SIZE, 3), np.uint8),
        "label": rng.integers(0, _CLASSES, batch).astype(np.int32),
    }
    ours = timed_steps(compiled, state, to_global(rows, mesh))
    told = {
        "checkout": str(Path(checkout).resolve()),
        "model": model,
        "batch": batch,
        "size": _SIZE,
        "classes": _CLASSES,
    }
    with peer.Peer(["vision_transformer"], told) as theirs:
        if theirs.said["params"] != description.param_count(parts.student):
            raise UserError(
                f"their {model} has {theirs.said['params']:,} parameters, ours {description.param_count(parts.student):,}"
            )
        found = alternate(
            {"ours": lambda _: 1e3 * ours(steps), "theirs": lambda _: 1e3 * theirs.ask({"steps": steps})}
        )
    return {
        "model": model,
        "batch": batch,
        "optimiser": experiment.optim,
        "steps": steps,
        "params": theirs.said["params"],
        "reference_commit": theirs.said["commit"],
        "ours_step_ms": spread(found["ours"]),
        "reference_step_ms": spread(found["theirs"]),
        "reference_to_ours": spread(ratios(found["theirs"], found["ours"])),
    }
