"""What the loop costs beside the compiled step: input, metrics, progress."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tools.bench_training.input_pipeline import reading
from tools.bench_training.rounds import alternate, ratios, spread
from trainer import config, optim, step
from trainer.data.global_batch import to_global
from trainer.parts import assemble
from trainer.tasks import task_of
from trainer.train import mesh_of, train


def overhead(model: str, batch: int, steps: int) -> dict[str, object]:
    """Milliseconds a step of the bare step and of the loop, and what the loop takes more, as a share."""
    given = {
        "model": model,
        "batch": batch,
        "total_steps": steps,
        "warmup_steps": 1,
        "eval_every": 10 * steps,
        "checkpoint_every": 10 * steps,
        "log_every": 10,
        "batch_eval": 500,
    }
    overrides = [(name, str(value)) for name, value in given.items()]
    experiment = config.experiment("configs/fashion_mnist_long.py:base", overrides)
    bare_step = _bare_step(experiment)
    with tempfile.TemporaryDirectory() as folder:

        def loop(number: int) -> float:
            said = train(experiment, Path(folder) / str(number))
            return 1e3 * batch / float(str(said["train_images_per_s"]))

        found = alternate({"bare": lambda _: 1e3 * bare_step(steps), "loop": loop})
    return {
        "model": model,
        "batch": batch,
        "steps": steps,
        "bare_step_ms": spread(found["bare"]),
        "loop_step_ms": spread(found["loop"]),
        "overhead": spread([ratio - 1 for ratio in ratios(found["loop"], found["bare"])]),
    }


def _bare_step(experiment: Any) -> Callable[[int], float]:
    """So many steps on one batch → seconds of one."""
    parts, mesh = assemble(experiment), mesh_of(experiment)
    tx = optim.optimiser(experiment)
    state, placed, _ = step.init_state(parts.card.description, tx, mesh, experiment.seed)
    compiled = step.make_train_step(experiment, task_of(parts, None, mesh), tx, placed, mesh)
    with reading(parts.dataset.train, parts.card.preprocess, experiment.aug, experiment.batch) as batches:
        batch = to_global(next(batches), mesh)
    return timed_steps(compiled, state, batch)


def timed_steps(compiled: Any, state: Any, batch: Any) -> Callable[[int], float]:
    """So many steps on `batch`, from `state` on → seconds of one. Two are taken here: the first compiles."""
    held = [state]
    for _ in range(2):
        held[0] = jax.block_until_ready(compiled(held[0], batch, None))[0]

    def run(count: int) -> float:
        began_s = time.monotonic()
        for _ in range(count):
            held[0], metrics = compiled(held[0], batch, None)
        jax.block_until_ready(metrics)
        return (time.monotonic() - began_s) / count

    return run
