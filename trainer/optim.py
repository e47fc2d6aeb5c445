"""The optimisers: linear warm-up, cosine decay and global-norm clipping before AdamW or Muon, from optax."""

from typing import Any

import jax
import optax
from optax import contrib

from trainer.config import Experiment

_UNDECAYED = (
    "bias",
    "scale",
    "pos",
    "cls",
)  # one-dimensional parameters and tokens, as the field leaves them undecayed
_RMS = 0.2  # of a Muon update, near AdamW's own, so that both take the same learning rates (arXiv:2502.16982, section 2.2)


def schedule(experiment: Experiment) -> optax.Schedule:
    """Learning rate at a step: linear from 0 to base_lr over warmup_steps, then a cosine to 0 at total_steps."""
    return optax.warmup_cosine_decay_schedule(
        0.0, experiment.base_lr, experiment.warmup_steps, experiment.total_steps
    )


def optimiser(experiment: Experiment) -> optax.GradientTransformation:
    """What `optim` names, behind clipping to `grad_norm_clip`; `wd` is multiplied by the learning rate, as optax does it."""
    named = {"adamw": _adamw, "muon": _muon}
    return optax.chain(
        optax.clip_by_global_norm(experiment.grad_norm_clip), named[experiment.optim](experiment)
    )


def _adamw(experiment: Experiment) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    return optax.adamw(schedule(experiment), weight_decay=experiment.wd, mask=_decayed)


def _muon(experiment: Experiment) -> optax.GradientTransformation:
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the kernels of blocks, which `wd` decays; Adam for the rest."""
    return contrib.muon(
        schedule(experiment),
        weight_decay=experiment.wd,
        consistent_rms=_RMS,
        muon_weight_dimension_numbers=_matrices,
    )


def _decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _UNDECAYED, params)


def _matrices(params: Any) -> Any:
    """Which axes of each parameter are a matrix's rows and columns; None: it is none, or is outside the blocks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _matrix([entry.key for entry in path], leaf.ndim), params
    )


def _matrix(names: list[str], ndim: int) -> contrib.MuonDimensionNumbers | None:
    """A kernel takes features (of all heads, where it ends an attention) to features (of all heads, where it begins one)."""
    if names[0] != "blocks" or names[-1] != "kernel":
        return None
    inputs = ndim - 1 if names[-2] == "out" else 1
    return contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, ndim)))
