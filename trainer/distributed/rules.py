"""The tables of where things live on the mesh: each parameter with everything the optimiser keeps for it, and activations.

The first pattern that ends a path wins; what no pattern matches is replicated. A dimension that its mesh axis does not divide
(pruned shapes rarely divide) is replicated too, and reported, instead of failing.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trainer.models.build import flatten

# Megatron-style tensor parallelism over heads and neurons (arXiv:1909.08053), fully sharded data parallelism over the width.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/(query|key|value)/kernel", ("fsdp", "model", None)),
    (r"attention/(query|key|value)/bias", ("model", None)),
    (r"attention/out/kernel", ("model", None, "fsdp")),
    (r"(mlp|channels)/fc1/kernel", ("fsdp", "model")),
    (r"(mlp|channels|tokens)/fc1/bias", ("model",)),
    (r"(mlp|channels)/fc2/kernel", ("model", "fsdp")),
    # Mixer's token MLPs are small, and numbers of patches rarely divide.
    (r"tokens/fc1/kernel", (None, "model")),
    (r"tokens/fc2/kernel", ("model", None)),
    (r"(patch|root|conv[123]|proj)/kernel", (None, None, None, "fsdp")),
    (r"head(_dist)?/kernel", ("fsdp", None)),
    (r"(^|/)token", (None, "fsdp")),
)


# Rows of images and tokens (B, …), as they go from block to block. Inside a block the compiler places them as the parameters' rules
# suggest; without this line it may move rows to where the parameters lie, in place of the parameters to the rows.
ACTIVATIONS = (("data", "fsdp"),)


def activations(mesh: Mesh) -> NamedSharding:
    """Where the rows of a batch lie between blocks."""
    return NamedSharding(mesh, PartitionSpec(*ACTIVATIONS))


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> tuple[PartitionSpec, list[str]]:
    """The partition of the array at `path`, and a line for every axis that its rule asks for but its shape does not divide."""
    axes = next((axes for pattern, axes in RULES if re.search(pattern + "$", path)), ())
    if shape == (1,):  # what an optimiser that factors keeps in place of an array
        axes = ()
    kept, refused = [], []
    for size, axis in zip(shape, axes if len(axes) == len(shape) else ()):
        divides = axis is None or size % mesh.shape[axis] == 0
        kept.append(axis if divides else None)
        if not divides:
            refused.append(f"{path}: {size} is not a multiple of {axis}={mesh.shape[axis]}")
    return PartitionSpec(*kept), refused


def grouped(reports: Sequence[str]) -> list[str]:
    """Reports of `spec_for`, those of all blocks alike in one line: `blocks/*/mlp/up/kernel (12 times): …`."""
    alike: dict[str, list[str]] = {}
    for report in reports:
        alike.setdefault(re.sub(r"\bblocks/\d+/", "blocks/*/", report), []).append(report)
    return [
        same[0] if len(same) == 1 else line.replace(": ", f" ({len(same)} times): ", 1)
        for line, same in alike.items()
    ]


def shardings(tree: Any, mesh: Mesh) -> tuple[Any, list[str]]:
    """A tree of `NamedSharding` like `tree` (of arrays or shapes), and what fell back to replicated."""
    reports: list[str] = []

    def place(path: str, leaf: Any) -> NamedSharding:
        spec, refused = spec_for(path, leaf.shape, mesh)
        reports.extend(refused)
        return NamedSharding(mesh, spec)

    placed = [place(path, leaf) for path, leaf in flatten(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), placed), reports


def in_shards(shapes: Any, placed: Any) -> Any:
    """Shapes that know where they lie: `shapes` (of arrays or shapes) with a sharding each, as `shardings` gives them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placed
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, equal on every process, as global arrays where the table puts them."""

    def put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, shardings(tree, mesh)[0])
