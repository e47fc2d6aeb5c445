"""To bring images and their texts together in one embedding space (LiT, arXiv:2111.07991; SigLIP, arXiv:2303.15343).

Every image of the global batch is compared with every text of it, so a batch is not taken in parts.
Shapes: B pairs, H W pixels, C channels, T tokens, E embedding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from serving.preprocess import PreprocessSpec
from trainer.config import Experiment
from trainer.description import TwoTowers
from trainer.distributed import mesh as meshes
from trainer.models.build import Params, bind
from trainer.models.computing import in_dtype
from trainer.step import Batch, Metrics, normalise

_ABSENT = -1e9  # the likeness of a text that fills up a batch


@dataclasses.dataclass(frozen=True)
class Contrasting:
    """A task of `trainer.step`. Batches are {"image": uint8 (B, H, W, C), "label": int32 (B, T), the tokens of the texts}."""

    experiment: Experiment
    model: TwoTowers
    preprocess: PreprocessSpec

    @property
    def draws(self) -> bool:
        """See `Task`."""
        return False

    def seen(self, batch: Batch, step: jax.Array) -> Batch:
        """See `Task`."""
        return {**batch, "image": normalise(batch["image"], self.preprocess)}

    def loss(
        self, params: Params, part: Batch, key: jax.Array | None, step: jax.Array, frozen: Params | None
    ) -> tuple[jax.Array, Metrics]:
        """See `Task`; the other mean is top1, the share of images whose own text is the likest of the batch."""
        if self.experiment.lock_image:
            params = {**params, "image": jax.lax.stop_gradient(params["image"])}
        found = likeness(self.model, params, part["image"], part["label"], self.experiment.dtype)
        losses = LOSSES[self.experiment.contrastive_loss](found)
        return losses.mean(), {"top1": _first(found).mean()}


def likeness(
    model: TwoTowers, params: Params, images: jax.Array, tokens: jax.Array, dtype: str = "float32"
) -> jax.Array:
    """Of every image (row) with every text (column): (B, B) float32 logits, by the learned temperature and bias."""
    computed = {
        tower: in_dtype(value, dtype) if isinstance(value, dict) else value for tower, value in params.items()
    }
    pair = bind(model, computed)
    seen, said = (
        embedding.astype(jnp.float32)
        for embedding in (pair.embed_images(images.astype(dtype)), pair.embed_texts(tokens))
    )
    return (seen @ said.T) * pair.multiplier() + (pair.b[...] if model.bias else 0.0)


def softmax(found: jax.Array) -> jax.Array:
    """(B,): the mean of choosing each image's text among all, and each text's image among all (CLIP, arXiv:2103.00020)."""
    own = jnp.diagonal(found)
    return (jax.nn.logsumexp(found, axis=1) + jax.nn.logsumexp(found, axis=0)) / 2 - own


def sigmoid(found: jax.Array) -> jax.Array:
    """(B,): whether each image and text belong together, every pair on its own (arXiv:2303.15343, equation 1)."""
    belongs = 2.0 * jnp.eye(len(found)) - 1.0
    return -jax.nn.log_sigmoid(belongs * found).sum(axis=1)


# The names stand in trainer.config.experiment too, which must not import jax.
LOSSES = {"softmax": softmax, "sigmoid": sigmoid}


def _first(found: jax.Array) -> jax.Array:
    return (found.argmax(axis=1) == np.arange(len(found))).astype(jnp.float32)


def make_pair_eval_step(model: TwoTowers, spec: PreprocessSpec, loss: str, mesh: Mesh) -> jax.stages.Wrapped:
    """(parameters, batch with a mask) → sums over real pairs: loss, correct (an image's own text is the likest there), count."""

    def step(params: Params, batch: Batch) -> Metrics:
        found = likeness(model, params, normalise(batch["image"], spec), batch["label"])
        mask = batch["mask"]
        both = mask[:, None] * mask[None, :]
        found = jnp.where(both > 0, found, _ABSENT)
        return {
            "loss": (LOSSES[loss](found) * mask).sum(),
            "correct": (_first(found) * mask).sum(),
            "count": mask.sum(),
        }

    return jax.jit(step, out_shardings=meshes.replicated(mesh))
