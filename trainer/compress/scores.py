"""How much each removable unit matters, from one pass of gradients over calibration images.

Every unit is multiplied by a gate that is 1. One gradient with respect to the gates, per image, gives for every unit
Fisher ½·E[(∂L/∂gate)²] (a second-order estimate of the loss when the gate goes to 0) and Taylor |E[∂L/∂gate]| (Molchanov et
al. 2019, arXiv:1906.10771). L is the cross-entropy against labels drawn from the model's own predictions, so no label is needed.

Query/key and value dims are scored in the basis that truncation uses: the teacher is first rewritten, without changing what it
computes, so that the dims of each head are its whitened singular directions in descending order.
"""

import jax
import jax.numpy as jnp
import numpy as np

from serving.command import UserError, progress
from trainer.compress import forward_scores, streams
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array
from trainer.description import Block, ViT, without_merging
from trainer.models.build import Params, bind, flatten, unflatten

# By the names and in the shapes of gates: see `trainer.models.encoder.BlockGates`.
LayerScores = dict[str, Array]
Scores = dict[str, LayerScores]  # by block index as text


def ones(block: Block) -> Params:
    """The gates of one block, all open."""
    gates: Params = {}
    if block.num_heads:
        shapes = {"heads": (), "query_key": (block.qk_dim,), "value": (block.v_dim,)}
        gates = {name: jnp.ones((block.num_heads, *shape)) for name, shape in shapes.items()}
        gates["attention"] = jnp.ones(())
    if block.mlp_dim:
        gates |= {"mlp": jnp.ones((block.mlp_dim,)), "mlp_branch": jnp.ones(())}
    return gates


def score(teacher: ViT, params: Params, images: Array, kind: str, seed: int, batch: int) -> Scores:
    """Scores of every unit from normalised images (images, H, W, C), by one of the configuration's kinds of score.

    Raises:
      UserError: when a score is not finite, or there are too few images.
    """
    teacher = without_merging(teacher)  # ordered dims are other keys, by which other tokens would be merged
    ordered = order_dims(teacher, params, images, batch)
    if kind in forward_scores.KINDS:
        found = forward_scores.score(teacher, ordered, images, kind, batch)
    else:
        found = _by_gradient(teacher, ordered, images, kind, seed, batch)
    require_finite(found, kind)
    return found


def require_finite(scores: Scores, kind: str) -> None:
    """Raises a UserError that names the first layer with a score that is NaN or infinite."""
    for index, layer in scores.items():
        for name, values in layer.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"the {kind} score of {name} in block {index} is not finite; scores must be finite numbers: "
                    "check the checkpoint's weights and the calibration images for NaN and infinity"
                )


def _by_gradient(teacher: ViT, ordered: Params, images: Array, kind: str, seed: int, batch: int) -> Scores:
    gates = {str(index): ones(block) for index, block in enumerate(teacher.blocks)}

    def image_loss(gates: Params, params: Params, image: jax.Array, key: jax.Array) -> jax.Array:
        logits = bind(teacher, params)(image[None], gates=gates)[0]
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return -jax.nn.log_softmax(logits)[drawn]

    @jax.jit
    def sums(params: Params, images: jax.Array, keys: jax.Array) -> tuple[Params, Params]:
        per_image = jax.vmap(jax.grad(image_loss), in_axes=(None, None, 0, 0))(gates, params, images, keys)
        return jax.tree.map(lambda g: g.sum(axis=0), per_image), jax.tree.map(
            lambda g: (g**2).sum(axis=0), per_image
        )

    keys = jax.random.split(jax.random.key(seed), len(images))
    first = second = jax.tree.map(lambda gate: np.zeros(gate.shape), gates)
    with progress(len(images), "scores") as bar:
        for rows in streams.batches(len(images), batch):
            new_first, new_second = sums(ordered, images[rows], keys[rows])
            first = jax.tree.map(np.add, first, new_first)
            second = jax.tree.map(np.add, second, new_second)
            bar.advance(rows.stop - rows.start)
    if kind == "taylor":
        return jax.tree.map(lambda value: np.abs(value) / len(images), first)
    return jax.tree.map(lambda value: value / (2 * len(images)), second)


def order_dims(teacher: ViT, params: Params, images: Array, batch: int) -> Params:
    """The same function with the dims of every head turned into its whitened singular directions, largest first."""
    stream, blocks = streams.embed(teacher, params, images, batch), {}
    for index, block in enumerate(teacher.blocks):
        blocks[str(index)] = own = dict(params["blocks"][str(index)])
        if block.num_heads:
            norm, averaged = streams.attention_moments(teacher, block, own, stream, batch)
            stream = streams.add_branch(streams.attention_branch(teacher, block), own, stream, batch)
            own["attention"] = cut_query_key(own["attention"], *norm.covariance(), block.qk_dim)
            covariances, means = zip(*(moments.covariance() for moments in averaged))
            own["attention"] = cut_value_output(
                own["attention"], np.stack(covariances), np.stack(means), block.v_dim
            )
        if block.mlp_dim:
            stream = streams.add_branch(streams.mlp_branch(teacher, block), own, stream, batch)
    return {**params, "blocks": blocks}


def to_arrays(scores: Scores) -> dict[str, Array]:
    """Scores under "/"-joined names, as `scores.npz` stores them."""
    return {name: np.asarray(value) for name, value in flatten(scores).items()}


def from_arrays(arrays: dict[str, Array]) -> Scores:
    """The inverse of `to_arrays`."""
    return unflatten(arrays)
