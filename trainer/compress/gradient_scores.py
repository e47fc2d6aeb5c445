"""How much each removable unit matters, from one pass of gradients over calibration images.

Every unit is multiplied by a gate that is 1. One gradient with respect to the gates, per image, gives for every unit
Fisher ½·E[(∂L/∂gate)²] (a second-order estimate of the loss when the gate goes to 0) and Taylor |E[∂L/∂gate]| (Molchanov et
al. 2019, arXiv:1906.10771). L is the cross-entropy against the true labels or, where none are given, against labels drawn from the
model's own predictions, as Fisher information is defined. Of such the mean gradient is 0, so that Taylor takes the first answer.

A block is what its two branches are together; a channel of the residual stream (`width`) what all blocks read of it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress import calibration_pass, cells
from trainer.compress.calibration_pass import Pass, Sums
from trainer.compress.moments import Array
from trainer.description import Block, ViT
from trainer.models.build import Params, bind
from trainer.models.stem import gates_name

# What the loss takes for the label of an image.
_GIVEN, _DRAWN, _FIRST = "given", "drawn", "first"


def ones(block: Block, width: int) -> Params:
    """The gates of one block in a stream of `width` channels, all open."""
    gates: Params = {}
    if block.num_heads:
        shapes = {"heads": (), "query_key": (block.qk_dim,), "value": (block.v_dim,)}
        gates = {name: jnp.ones((block.num_heads, *shape)) for name, shape in shapes.items()}
        gates |= {"attention": jnp.ones(()), "norm1": jnp.ones((width,))}
    if block.mlp_dim:
        gates |= {"mlp": jnp.ones((block.mlp_dim,)), "mlp_branch": jnp.ones(()), "norm2": jnp.ones((width,))}
    return gates


def open_gates(teacher: ViT) -> Params:
    """All gates of a model: of its blocks, and of the inner channels of its stem's units."""
    units = {gates_name(unit): _of_unit(left) for unit, left in enumerate(cells.groups(teacher.stem))}
    return {str(index): ones(block, teacher.width) for index, block in enumerate(teacher.blocks)} | units


def _of_unit(groups: int) -> Params:
    return {"conv1": jnp.ones((groups,)), "conv2": jnp.ones((groups,))}


def score(
    teacher: ViT, params: Params, images: Array, kind: str, seed: int, how: Pass, labels: Array | None = None
) -> dict[str, dict[str, Array]]:
    """Scores by block index and gate, from normalised images (images, H, W, C), the same ones on every process."""
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), len(images))))
    asked = (images, keys if labels is None else labels)
    answers = _GIVEN if labels is not None else _FIRST if kind == "taylor" else _DRAWN
    sums = calibration_pass.summed(how, _sums(teacher, answers), params, asked)
    if kind == "taylor":
        return jax.tree.map(lambda value: np.abs(value) / len(images), sums["first"])
    return jax.tree.map(lambda value: value / (2 * len(images)), sums["second"])


def with_sums(gradients: Params) -> Params:
    """Gradients of gates, with those of gates that would hold several of them at once: of blocks, and of stream channels."""
    found, channels = dict(gradients), []
    for name, own in gradients.items():
        branches = [own[part] for part in ("attention", "mlp_branch") if part in own]
        if branches:
            found[name] = {**own, "block": sum(branches[1:], branches[0])}
        channels += [own[part] for part in ("norm1", "norm2") if part in own]
    return found | ({"stream": {"width": sum(channels[1:], channels[0])}} if channels else {})


def _sums(teacher: ViT, answers: str) -> Sums:
    """(parameters, images, keys to draw labels with or labels, counts) → sums of gradients, `first`, and of squares, `second`."""
    gates = open_gates(teacher)

    def image_loss(gates: Params, params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
        logits = bind(teacher, params)(image[None], gates=gates)[0]
        if answers == _FIRST:
            label = logits.argmax()
        if answers == _DRAWN:
            label = jax.random.categorical(jax.random.wrap_key_data(label), jax.lax.stop_gradient(logits))
        return -jax.nn.log_softmax(logits)[label]

    @jax.jit
    def sums(params: Params, images: jax.Array, labels: jax.Array, counts: jax.Array) -> Params:
        each = jax.vmap(jax.grad(image_loss), in_axes=(None, None, 0, 0))(gates, params, images, labels)
        per_image = with_sums(each)
        return {
            "first": jax.tree.map(lambda g: jnp.tensordot(counts, g, 1), per_image),
            "second": jax.tree.map(lambda g: jnp.tensordot(counts, g**2, 1), per_image),
        }

    return sums
