"""From a model's name to a bundle in one call: `trainer.checkpoint.export_optimized`."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from serving.command import UserError
from trainer.description import named
from trainer.export import job, subject
from trainer.models.build import init_params
from trainer.precisions import AUTO, PRECISIONS
from trainer.weights import families
from trainer.weights.load import Weights, load_weights
from trainer.weights.report import Report

_log = logging.getLogger(__name__)
_CLASSES = 1_000  # of fresh weights: ImageNet's, as users of the article expect
_CALIBRATION_EXAMPLES, _MIN_AGREEMENT = 512, 0.95


def export_optimized(
    model: str,
    input_shape: Sequence[int],
    output_path: Path,
    weights: str,
    precision: str,
    images: Sequence[str],
    sha256: str,
) -> Path:
    """See `trainer.checkpoint.export_optimized`."""
    if precision not in (*PRECISIONS, AUTO):
        raise UserError(f"precision {precision!r} must be one of {', '.join((*PRECISIONS, AUTO))}")
    height, width, channels = _image_shape(input_shape)
    if weights:
        loaded = load_weights(weights, model, image_size=(height, width), sha256=sha256)
    else:
        loaded = _fresh(model, (height, width), channels)
    _check_channels(loaded, channels, input_shape)
    target = _next_version(output_path, model or Path(weights).name)
    request = job.Request(
        target, precision, _CALIBRATION_EXAMPLES, _MIN_AGREEMENT, len(os.sched_getaffinity(0))
    )
    stage = "published" if weights else "untrained"
    job.export(subject.from_weights(loaded, list(images), stage), request)
    return target


def _image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = list(input_shape)[-3:]
    if len(input_shape) not in (3, 4) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(
            f"input_shape {tuple(input_shape)} must be (batch, height, width, channels), such as (1, 224, 224, 3)"
        )
    return sizes[0], sizes[1], sizes[2]


def _fresh(name: str, image_size: tuple[int, int], channels: int) -> Weights:
    model = named(name, image_size, channels, _CLASSES)
    _log.warning("%s: no weights were given; the bundle answers with an untrained model", name)
    params = jax.device_get(jax.jit(lambda: init_params(model, 0))())
    family = families.published_family(model)
    return Weights(model, params, families.preprocess_of(family, model, {}), (), family, "", Report())


def _check_channels(weights: Weights, channels: int, input_shape: Sequence[int]) -> None:
    has = getattr(weights.description, "channels", channels)
    if has != channels:
        raise UserError(
            f"input_shape {tuple(input_shape)} has {channels} channels, the weights are for {has}; give those"
        )


def _next_version(repository: Path, model: str) -> Path:
    folder = repository / re.sub(r"[^A-Za-z0-9_.-]+", "_", model)
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return folder / str(max(taken, default=0) + 1)
