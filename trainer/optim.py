"""The optimisers and their learning rates, from optax: warm-up and decay, and global-norm clipping before what `optim` names."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from trainer.config import Experiment

# One-dimensional parameters and tokens, as the field leaves them undecayed.
_UNDECAYED = ("bias", "scale", "pos", "cls", "dist")
_MOMENTUM = 0.9
# Least size of both axes of a kernel whose second moment is kept in factors: heads have 64 dims.
_FACTORED = 32
_RMS = 0.2  # of a Muon update, near AdamW's own, so that both take the same learning rates (arXiv:2502.16982, section 2.2)


def schedule(experiment: Experiment) -> optax.Schedule:
    """Learning rate at a step: linear from 0 to base_lr over warmup_steps, then as `decay_type` says.

    cosine and linear come to 0 at total_steps; rsqrt falls as 1/√step (Vaswani et al. 2017, arXiv:1706.03762, equation 3) and is
    above 0 at the end.
    """
    peak, warm_up = experiment.base_lr, experiment.warmup_steps
    rest = experiment.total_steps - warm_up
    decays: dict[str, optax.Schedule] = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "rsqrt": lambda step: peak / jnp.sqrt(1 + step / max(warm_up, 1)),
    }
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warm_up), decays[experiment.decay_type]], [warm_up]
    )


def optimiser(experiment: Experiment) -> optax.GradientTransformation:
    """What `optim` names, behind clipping to `grad_norm_clip`; `wd` is decoupled and multiplied by the learning rate in all.

    Where the image tower of a pair is locked, it stays as it is, and nothing is kept for it.
    """
    if experiment.pairs and experiment.lock_image:
        return optax.partition(
            {"learns": _learning(experiment), "locked": optax.set_to_zero()}, _parts_of_a_pair
        )
    return _learning(experiment)


def _parts_of_a_pair(params: Any) -> Any:
    return {
        tower: jax.tree.map(lambda _, name=tower: "locked" if name == "image" else "learns", part)
        for tower, part in params.items()
    }


def _learning(experiment: Experiment) -> optax.GradientTransformation:
    clipped = optax.clip_by_global_norm(experiment.grad_norm_clip)
    if experiment.optim == "muon":
        return optax.chain(clipped, _muon(experiment))
    named = optax.chain(  # nested as optax.adamw is: checkpoints know what is kept by its place
        _directions(experiment.optim),
        optax.add_decayed_weights(experiment.wd, _decayed),
        optax.scale_by_learning_rate(schedule(experiment)),
    )
    return optax.chain(clipped, named)


def _directions(name: str) -> optax.GradientTransformation:
    """What a learning rate multiplies: AdamW's, Lion's, SGD's with momentum 0.9, or Adafactor's as large ViTs are trained with.

    Loshchilov & Hutter 2019, arXiv:1711.05101; Chen et al. 2023, arXiv:2302.06675; Zhai et al. 2022, arXiv:2106.04560, section
    3.4 (second moments in factors, their decay capped at 0.999, first ones kept, no scale of the parameters), after Shazeer & Stern
    2018, arXiv:1804.04235, whose clipping of each update is kept.
    """
    if name == "adafactor":
        factored = optax.scale_by_factored_rms(min_dim_size_to_factor=_FACTORED, decay_rate_fn=_capped)
        return optax.chain(factored, optax.clip_by_block_rms(1.0), optax.ema(_MOMENTUM, debias=False))
    return {
        "adamw": optax.scale_by_adam,
        "lion": optax.scale_by_lion,
        "sgd": functools.partial(optax.trace, _MOMENTUM),
    }[name]()


def _capped(step: Any, exponent: Any) -> jax.Array:
    """Adafactor's decay of second moments, which rises to 1, held at 0.999 so that they never freeze."""
    return jnp.minimum(1.0 - (step + 1.0) ** -exponent, 0.999)


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
