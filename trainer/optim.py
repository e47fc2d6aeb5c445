"""The optimiser: AdamW with linear warm-up, cosine decay and global-norm clipping, from optax."""

from typing import Any

import jax
import optax

from trainer.config import Experiment

_UNDECAYED = (
    "bias",
    "scale",
    "pos",
    "cls",
)  # one-dimensional parameters and tokens, as the field leaves them undecayed


def schedule(experiment: Experiment) -> optax.Schedule:
    """Learning rate at a step: linear from 0 to base_lr over warmup_steps, then a cosine to 0 at total_steps."""
    return optax.warmup_cosine_decay_schedule(
        0.0, experiment.base_lr, experiment.warmup_steps, experiment.total_steps
    )


def optimiser(experiment: Experiment) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); `wd` is multiplied by the learning rate, as optax does it."""
    return optax.chain(
        optax.clip_by_global_norm(experiment.grad_norm_clip),
        optax.adamw(schedule(experiment), weight_decay=experiment.wd, mask=_decayed),
    )


def _decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _UNDECAYED, params)
