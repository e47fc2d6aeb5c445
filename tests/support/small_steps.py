"""Training steps of a small model without data set, workdir or loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.small_models import DIGITS_SPEC, SMALL, random_params
from trainer import config, objectives, optim
from trainer.classifying import Classifying
from trainer.config import MeshShape
from trainer.description import ViT
from trainer.distributed import rules
from trainer.distributed.mesh import make_mesh
from trainer.step import Batch, TrainState, init_state, make_train_step

ONE_DEVICE = MeshShape(-1, 1, 1)


class Steps:
    """The compiled step of `model` from random parameters, with the digits' recipe and what `settings` changes in it."""

    def __init__(self, model: ViT = SMALL, **settings: object) -> None:
        given = {"total_steps": 100, "warmup_steps": 1, "base_lr": 0.01, **settings}
        self.experiment = config.experiment(
            "configs/digits.py:teacher", [(name, str(value)) for name, value in given.items()]
        )
        mesh, tx = make_mesh(ONE_DEVICE), optim.optimiser(self.experiment)
        with_ema = self.experiment.ema_decay > 0
        fresh, placed, _ = init_state(model, tx, mesh, seed=0, with_ema=with_ema)
        # Where a step leaves them: else the second step is compiled anew. Two copies, since a step takes its arrays away.
        first = [rules.place(random_params(model), mesh) for _ in range(2)]
        self.state = dataclasses.replace(fresh, params=first[0], ema=first[1] if with_ema else None)
        objective = objectives.classification(0.0)
        task = Classifying(self.experiment, model, DIGITS_SPEC, objective, None, mesh)
        self.step = make_train_step(self.experiment, task, tx, placed, mesh)

    def take(self, batch: Batch) -> dict[str, float]:
        """One step; its metrics."""
        self.state, metrics = self.step(self.state, batch, None)
        return {name: float(value) for name, value in metrics.items()}


def batch(number: int = 0, size: int = 8) -> Batch:
    """Random images of the small model, and labels."""
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (size, *SMALL.image_size, 1), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32)}


def copied(state: TrainState) -> Any:
    """The state on the host: the next step takes its arrays away."""
    return jax.tree.map(np.array, state)
