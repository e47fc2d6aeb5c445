"""What a teacher's answer depends on in its stream, and that rotations keep it."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support.small_families import DEIT, HYBRID
from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import streams, width
from trainer.compress.moments import Array
from trainer.compress.stream_fisher import fisher
from trainer.description import ViT
from trainer.models.build import Params


@pytest.mark.parametrize("model", [SMALL, DEIT, HYBRID], ids=["gap", "distilled", "hybrid"])
def test_it_is_the_second_moment_of_the_gradients_of_all_classes(model: ViT) -> None:
    """Against J^T (diag p - p p^T) J of every image and reading, J by forward differentiation of the rest of the model."""
    params, images = random_params(model), smooth_images(model, 3, 1)
    walked = list(streams.walk(model, params, images, 3))
    # Images again and again: signs are drawn anew for each, and their mean comes near what it estimates.
    found = fisher(model, params, [np.tile(stream, (80, 1, 1)) for stream in walked], 80)
    wanted = sum(moment / np.sqrt(np.trace(moment)) for moment in _exact(model, params, walked)) * np.sqrt(80)
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)


def _exact(model: ViT, params: Params, walked: list[Array]) -> list[Array]:
    """Of every reading, in units of its stream."""

    def logits(offsets: list[jax.Array], stream: jax.Array) -> jax.Array:
        stream, later = (stream + offsets[0])[None], iter(offsets[1:])
        for index, block in enumerate(model.blocks):
            for branch in (streams.attention_branch, streams.mlp_branch):
                stream = branch(model, block).after(params["blocks"][str(index)], stream) + next(later)
        return streams.read(model, params, stream)[0]

    differentiated, said = jax.jit(jax.jacrev(logits)), jax.jit(logits)
    nothing = [np.zeros_like(stream[0]) for stream in walked]
    moments = [np.zeros((model.width, model.width)) for _ in walked]
    for first in walked[0]:
        chances = np.asarray(jax.nn.softmax(said(nothing, first)))
        at_logits = np.diag(chances) - np.outer(chances, chances)
        for place, gradients in enumerate(differentiated(nothing, first)):  # each (C, T, D)
            moments[place] += np.einsum("ctd,ck,kte->de", gradients, at_logits, gradients)
    return [moment * np.mean(np.square(stream)) for moment, stream in zip(moments, walked, strict=True)]


def test_rotations_keep_what_the_answer_depends_on_before_what_varies_more() -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, 96, 1)
    walked = list(streams.walk(SMALL, params, images, 64))
    varying = width.principal_directions(SMALL, walked, np.eye(SMALL.width), 64)
    middle = varying[:, 7]
    found = width.principal_directions(SMALL, walked, np.outer(middle, middle), 64)
    assert np.linalg.norm(middle @ varying[:, :4]) < 0.01
    assert np.linalg.norm(middle @ found[:, :4]) > 0.9
    np.testing.assert_allclose(found.T @ found, np.eye(SMALL.width - 1), atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-9)


def test_a_model_without_a_head_is_refused() -> None:
    headless = dataclasses.replace(SMALL, num_classes=0)
    with pytest.raises(ValueError, match="without a head"):
        fisher(headless, {}, [], 8)
