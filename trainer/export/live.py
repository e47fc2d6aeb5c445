"""What the live model answers: the measure of every exported file, for every family."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trainer.description import TwoTowers
from trainer.export.graph import Array
from trainer.export.signature import IMAGE_TOWER, Single
from trainer.models.build import Params, bind

Answer = Callable[[Array], Array]  # a batch of images or tokens → logits or embeddings


def live_model(model: Single, params: Params) -> Answer:
    """The model itself, compiled once for each batch size."""
    return _compiled(lambda params, inputs: bind(model, params)(inputs), params)


def live_tower(model: TwoTowers, params: Params, tower: str) -> Answer:
    """One tower of a pair, `image` or `text`: normalised embeddings."""

    def embed(params: Params, inputs: jax.Array) -> jax.Array:
        pair = bind(model, params)
        return pair.embed_images(inputs) if tower == IMAGE_TOWER else pair.embed_texts(inputs)

    return _compiled(embed, params)


def _compiled(run: Callable[[Params, Any], jax.Array], params: Params) -> Answer:
    compiled, placed = jax.jit(run), jax.device_put(params)

    def answer(inputs: Array) -> Array:
        with jax.default_matmul_precision(
            "highest"
        ):  # accelerators would multiply float32 in TF32 or bfloat16
            return np.asarray(compiled(placed, inputs))

    return answer
