"""One pass over calibration images, cut over all devices of the job: sums over images that every process ends up with.

Each device takes its share of a batch. An interrupted pass goes on with the batch after the last sums that were kept.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from serving.command import progress
from trainer.compress import streams
from trainer.compress.moments import Array
from trainer.distributed import mesh as meshes
from trainer.models.build import Params, flatten, unflatten

_KEPT_EVERY_S = 30.0


class Sums(Protocol):
    """(parameters, arrays cut over the mesh …, which rows count (B,) as 0 or 1) → sums over those that do."""

    def __call__(self, params: Params, *arrays: jax.Array) -> Params: ...


@dataclasses.dataclass(frozen=True)
class Partial:
    """What an interrupted pass has summed, in `path`, for the pass that `identity` names; path None keeps nothing."""

    path: Path | None = None
    identity: str = ""

    def load(self) -> tuple[int, Params] | None:
        """The images that are summed and their sums; None where there is nothing of this pass."""
        if self.path is None or not self.path.is_file():
            return None
        with np.load(self.path) as file:
            arrays = dict(file)
        said = json.loads(str(arrays.pop("said")))
        return (said["images"], unflatten(arrays)) if said["identity"] == self.identity else None

    def save(self, images: int, sums: Params) -> None:
        """Keeps the sums over the first `images`; what was kept before stays until they are whole."""
        if self.path is None or jax.process_index():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.stem}.draft.npz")
        said = json.dumps({"identity": self.identity, "images": images})
        np.savez(draft, said=np.array(said), **flatten(sums))
        draft.rename(self.path)

    def forget(self) -> None:
        """Removes what was kept: the pass is done."""
        if self.path is not None and not jax.process_index():
            self.path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Pass:
    """How a pass is made: images at a time, the mesh they are cut over, and what an interrupted one had kept."""

    batch: int
    mesh: Mesh
    partial: Partial = Partial()


def summed(
    how: Pass,
    sums: Sums,
    params: Params,
    arrays: Sequence[Array],
    on_host: Callable[[Params], Params] = lambda found: found,
) -> Params:
    """`sums` over all rows of `arrays` (images, …), the same ones on every process; added in float64.

    `on_host` makes something additive of a batch's sums where they are not.
    """
    place, count = _placed(how.mesh), len(arrays[0])
    held = jax.device_put(params, meshes.replicated(how.mesh))
    done, total = how.partial.load() or (0, {})
    kept_s = time.monotonic()
    with progress(count, "scores") as bar:
        bar.advance(done)
        for rows in streams.batches(count, how.batch):
            if rows.start < done:
                continue
            found = sums(held, *place(*(array[rows] for array in arrays)))
            new = on_host(jax.tree.map(lambda value: np.asarray(value, np.float64), found))
            total = jax.tree.map(np.add, total, new) if total else new
            bar.advance(rows.stop - rows.start)
            if time.monotonic() - kept_s > _KEPT_EVERY_S:
                how.partial.save(rows.stop, total)
                kept_s = time.monotonic()
    return total


def _placed(mesh: Mesh) -> Callable[..., list[jax.Array]]:
    """Arrays (B, …) → the same, and counts (B,), cut over the mesh; the last row fills up what its devices do not divide."""
    sharding = meshes.batch_sharding(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def placed(*arrays: Array) -> list[jax.Array]:
        size = len(arrays[0])
        rows = np.minimum(np.arange(size + -size % shards), size - 1)
        counts = (np.arange(len(rows)) < size).astype(np.float32)
        return [_cut(array, sharding) for array in (*(array[rows] for array in arrays), counts)]

    return placed


def _cut(array: Array, sharding: NamedSharding) -> jax.Array:
    def part(index: Any) -> Array:
        return array[index]

    return jax.make_array_from_callback(array.shape, sharding, part)
