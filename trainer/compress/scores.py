"""How much each removable unit matters: by gradients (`gradient_scores`) or by activations alone (`forward_scores`).

Query/key and value dims are scored in the basis that truncation uses: the teacher is first rewritten, without changing what it
computes, so that the dims of each head are its whitened singular directions in descending order.
"""

import numpy as np
from jax.sharding import Mesh

from serving.command import UserError
from trainer.compress import forward_scores, gradient_scores, streams
from trainer.compress.calibration_pass import Partial, Pass
from trainer.compress.lowrank import cut_query_key, cut_value_output
from trainer.compress.moments import Array, of_layer
from trainer.config import MeshShape
from trainer.description import ViT, without_merging
from trainer.distributed.mesh import make_mesh
from trainer.models.build import Params, flatten, unflatten

# By the names and in the shapes of gates: see `trainer.models.encoder.BlockGates`.
LayerScores = dict[str, Array]
Scores = dict[str, LayerScores]  # by block index as text
_NOTHING_KEPT = Partial()


def score(
    teacher: ViT,
    params: Params,
    images: Array,
    kind: str,
    seed: int,
    batch: int,
    mesh: Mesh | None = None,
    partial: Partial = _NOTHING_KEPT,
    labels: Array | None = None,
) -> Scores:
    """Scores of every unit from normalised images (images, H, W, C), by one of the configuration's kinds of score.

    Gradients are of the loss against `labels` (images,), or where there are none against labels that the model says.
    The pass is cut over `mesh` (None: all devices of the job), and goes on from what `partial` kept.

    Raises:
      UserError: when a score is not finite, or there are too few images.
    """
    teacher = without_merging(teacher)  # ordered dims are other keys, by which other tokens would be merged
    ordered = order_dims(teacher, params, images, batch)
    how = Pass(batch, mesh or make_mesh(MeshShape(data=-1, fsdp=1, model=1)), partial)
    if kind in forward_scores.KINDS:
        found = forward_scores.score(teacher, ordered, images, kind, how)
    else:
        found = gradient_scores.score(teacher, ordered, images, kind, seed, how, labels)
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


def order_dims(teacher: ViT, params: Params, images: Array, batch: int) -> Params:
    """The same function with the dims of every head turned into its whitened singular directions, largest first."""
    stream, blocks = streams.embed(teacher, params, images, batch), {}
    for index, block in enumerate(teacher.blocks):
        blocks[str(index)] = own = dict(params["blocks"][str(index)])
        if block.num_heads:
            with of_layer(index):
                norm, averaged = streams.attention_moments(teacher, block, own, stream, batch)
                covariances, means = zip(*(moments.covariance() for moments in averaged))
                of_norm = norm.covariance()
            stream = streams.add_branch(streams.attention_branch(teacher, block), own, stream, batch)
            own["attention"] = cut_query_key(own["attention"], *of_norm, block.qk_dim)
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
