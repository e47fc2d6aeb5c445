"""How much each removable unit matters, from one pass of gradients over calibration images, cut over all devices of the job.

Every unit is multiplied by a gate that is 1. One gradient with respect to the gates, per image, gives for every unit
Fisher ½·E[(∂L/∂gate)²] (a second-order estimate of the loss when the gate goes to 0) and Taylor |E[∂L/∂gate]| (Molchanov et
al. 2019, arXiv:1906.10771). L is the cross-entropy against labels drawn from the model's own predictions, so no label is needed.

A block is what its two branches are together; a channel of the residual stream (`width`) what all blocks read of it.

Each device takes its share of a batch, and the sums over all of them, of all processes, lie on every one.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from serving.command import progress
from trainer.compress import cells, streams
from trainer.compress.moments import Array
from trainer.description import Block, ViT
from trainer.distributed import mesh as meshes
from trainer.models.build import Params, bind, flatten, unflatten
from trainer.models.stem import gates_name

_KEPT_EVERY_S = 30.0

Sums = tuple[Params, Params]  # of the gradients and of their squares, by block index and gate


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


@dataclasses.dataclass(frozen=True)
class Partial:
    """What an interrupted pass has summed, in `path`, for the pass that `identity` names; path None keeps nothing."""

    path: Path | None = None
    identity: str = ""

    def load(self) -> tuple[int, Sums] | None:
        """The images that are summed and their sums; None where there is nothing of this pass."""
        if self.path is None or not self.path.is_file():
            return None
        with np.load(self.path) as file:
            arrays = dict(file)
        said = json.loads(str(arrays.pop("said")))
        if said["identity"] != self.identity:
            return None
        both = unflatten(arrays)
        return said["images"], (both["first"], both["second"])

    def save(self, images: int, sums: Sums) -> None:
        """Keeps the sums over the first `images`; what was kept before stays until they are whole."""
        if self.path is None or jax.process_index():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays = flatten({"first": sums[0], "second": sums[1]})
        draft = self.path.with_name(f".{self.path.stem}.draft.npz")
        said = json.dumps({"identity": self.identity, "images": images})
        np.savez(draft, said=np.array(said), **arrays)
        draft.rename(self.path)

    def forget(self) -> None:
        """Removes what was kept: the pass is done."""
        if self.path is not None and not jax.process_index():
            self.path.unlink(missing_ok=True)


def score(
    teacher: ViT,
    params: Params,
    images: Array,
    kind: str,
    seed: int,
    batch: int,
    mesh: Mesh,
    partial: Partial,
) -> dict[str, dict[str, Array]]:
    """Scores by block index and gate, from normalised images (images, H, W, C), the same ones on every process."""
    sums, place = _summed(teacher), _placed(mesh)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), len(images))))
    held = jax.device_put(params, meshes.replicated(mesh))
    done, (first, second) = partial.load() or (0, _nothing(teacher))
    kept_s = time.monotonic()
    with progress(len(images), "scores") as bar:
        bar.advance(done)
        for rows in streams.batches(len(images), batch):
            if rows.start < done:
                continue
            new_first, new_second = sums(held, *place(images[rows], keys[rows]))
            first = jax.tree.map(np.add, first, new_first)
            second = jax.tree.map(np.add, second, new_second)
            bar.advance(rows.stop - rows.start)
            if time.monotonic() - kept_s > _KEPT_EVERY_S:
                partial.save(rows.stop, (first, second))
                kept_s = time.monotonic()
    if kind == "taylor":
        return jax.tree.map(lambda value: np.abs(value) / len(images), first)
    return jax.tree.map(lambda value: value / (2 * len(images)), second)


def _nothing(teacher: ViT) -> Sums:
    zeros = jax.tree.map(lambda gate: np.zeros(gate.shape), with_sums(open_gates(teacher)))
    return zeros, zeros


def with_sums(gradients: Params) -> Params:
    """Gradients of gates, with those of gates that would hold several of them at once: of blocks, and of stream channels."""
    found, channels = dict(gradients), []
    for name, own in gradients.items():
        branches = [own[part] for part in ("attention", "mlp_branch") if part in own]
        if branches:
            found[name] = {**own, "block": sum(branches[1:], branches[0])}
        channels += [own[part] for part in ("norm1", "norm2") if part in own]
    return found | ({"stream": {"width": sum(channels[1:], channels[0])}} if channels else {})


def _summed(teacher: ViT) -> Callable[[Params, jax.Array, jax.Array, jax.Array], Sums]:
    """(parameters, images, keys, which images count (B,) as 0 or 1) → the sums over those that do."""
    gates = open_gates(teacher)

    def image_loss(gates: Params, params: Params, image: jax.Array, key: jax.Array) -> jax.Array:
        logits = bind(teacher, params)(image[None], gates=gates)[0]
        drawn = jax.random.categorical(jax.random.wrap_key_data(key), jax.lax.stop_gradient(logits))
        return -jax.nn.log_softmax(logits)[drawn]

    @jax.jit
    def sums(params: Params, images: jax.Array, keys: jax.Array, counts: jax.Array) -> Sums:
        each = jax.vmap(jax.grad(image_loss), in_axes=(None, None, 0, 0))(gates, params, images, keys)
        per_image = with_sums(each)
        return (
            jax.tree.map(lambda g: jnp.tensordot(counts, g, 1), per_image),
            jax.tree.map(lambda g: jnp.tensordot(counts, g**2, 1), per_image),
        )

    return sums


def _placed(mesh: Mesh) -> Callable[[Array, Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """(images, keys) → images, keys and counts cut over the mesh; the last image fills up what its devices do not divide."""
    sharding = meshes.batch_sharding(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def placed(images: Array, keys: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        missing = -len(images) % shards
        rows = np.minimum(np.arange(len(images) + missing), len(images) - 1)
        counts = (np.arange(len(rows)) < len(images)).astype(np.float32)
        return _cut(images[rows], sharding), _cut(keys[rows], sharding), _cut(counts, sharding)

    return placed


def _cut(array: Array, sharding: NamedSharding) -> jax.Array:
    def part(index: Any) -> Array:
        return array[index]

    return jax.make_array_from_callback(array.shape, sharding, part)
