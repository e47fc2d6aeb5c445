"""A teacher's answers to every view that a run sees, in files, so that later runs need not ask it again.

    FOLDER/key.json       what the answers are of: a run of another key is refused
          /logits.npy     float32 (epochs, examples, columns): of all classes, or of the `TOP` best and one for each of the rest
          /classes.npy    int32 (epochs, examples, TOP): which classes these are; only where there are more than `ALL_UP_TO`
          /filled         how many answers are there, counted from the first epoch's first example

The files are as large as all answers from the start, but take up no more of the disk than is filled. TinyViT (Wu et al. 2022,
arXiv:2207.10666, section 3) stores its teacher's best logits likewise.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from serving.command import UserError

ALL_UP_TO = 256  # so many logits are stored whole
TOP = 64
LOGITS, CLASSES = "taught_logits", "taught_classes"  # in a batch
Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Key:
    """All that a stored answer depends on; `views` is a digest of some of the views themselves, as augmented here and now."""

    teacher: str  # sha256 of its weights
    data: str  # fingerprint of the data set
    examples: int
    classes: int
    preprocessing: str
    aug: str
    seed: int
    teacher_epochs: int
    views: str


class CachedLogits:
    """The answers in a folder. One process writes; any number of them read."""

    def __init__(self, folder: Path, key: Key) -> None:
        """Opens what `create` made.

        Raises:
          UserError: naming everything in which the stored key differs from `key`, or when the files are damaged.
        """
        _check_key(folder, key)
        self._folder = folder
        self._examples, self._top = key.examples, key.classes > ALL_UP_TO
        try:
            self._logits = np.load(folder / "logits.npy", mmap_mode="r+")
            self._classes = np.load(folder / "classes.npy", mmap_mode="r+") if self._top else None
            self.filled = int((folder / "filled").read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"teacher_cache {folder} cannot be read: {error}; remove it to fill it anew"
            ) from error

    def write(self, rows: Array, logits: Array) -> None:
        """Stores logits (R, classes) as the answers to `rows` (R,), the next R in order: epoch · examples + example."""
        epoch, example = np.divmod(rows, self._examples)
        if self._classes is None:
            self._logits[epoch, example] = logits
        else:
            self._logits[epoch, example], self._classes[epoch, example] = compact(logits)
            self._classes.flush()
        self._logits.flush()
        self.filled += len(rows)
        part = self._folder / "filled.part"
        part.write_text(f"{self.filled}\n")
        os.replace(part, self._folder / "filled")

    def read(self, example: Array, epoch: Array) -> dict[str, Array]:
        """The answers to the views of `example` (B,) in `epoch` (B,), as a batch holds them."""
        if (epoch * self._examples + example >= self.filled).any():
            raise ValueError(f"{self._folder} is asked for answers that it does not hold yet")
        found = {LOGITS: np.asarray(self._logits[epoch, example])}
        if self._classes is not None:
            found[CLASSES] = np.asarray(self._classes[epoch, example])
        return found


def create(folder: Path, key: Key) -> None:
    """Makes the files for answers of `key` in `folder`, where there are none yet."""
    if (folder / "key.json").is_file():
        return
    shape = (key.teacher_epochs, key.examples)
    top = key.classes > ALL_UP_TO
    columns = TOP + 1 if top else key.classes
    np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, (*shape, columns))
    if top:
        np.lib.format.open_memmap(folder / "classes.npy", "w+", np.int32, (*shape, TOP))
    (folder / "filled").write_text("0\n")
    part = folder / "key.json.part"
    part.write_text(json.dumps(dataclasses.asdict(key), indent=1) + "\n")
    os.replace(part, folder / "key.json")  # last: with it, the others are whole


def _check_key(folder: Path, key: Key) -> None:
    try:
        stored = json.loads((folder / "key.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"teacher_cache {folder} cannot be read: {error}; remove it to fill it anew"
        ) from error
    different = [
        f"{name} is {stored.get(name, 'absent')!r} there, {value!r} now"
        for name, value in dataclasses.asdict(key).items()
        if stored.get(name) != value
    ]
    if different:
        raise UserError(
            f"teacher_cache {folder} holds answers of another kind: {'; '.join(different)}; give another folder, "
            "or what these were made with"
        )


def compact(logits: Array) -> tuple[Array, Array]:
    """Logits (R, classes) → the `TOP` best, largest first, with one column for each of the rest (R, TOP + 1); their classes.

    The rest share what probability is left: the last column is the logarithm of the mean of their exponentials.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")
    ordered = np.take_along_axis(logits, order, axis=-1)
    rest, largest = ordered[:, TOP:].astype(np.float64), ordered[:, TOP : TOP + 1]
    mean = largest[:, 0] + np.log(np.exp(rest - largest).mean(axis=-1))
    return np.column_stack([ordered[:, :TOP], mean]).astype(np.float32), order[:, :TOP].astype(np.int32)


def dense(batch: Mapping[str, jax.Array], num_classes: int) -> jax.Array:
    """The stored logits of a batch (B, num_classes); where only the best were stored, the rest are alike."""
    stored = batch[LOGITS]
    if CLASSES not in batch:
        return stored
    rows = jnp.arange(len(stored))[:, None]
    alike = jnp.broadcast_to(stored[:, -1:], (len(stored), num_classes))
    return alike.at[rows, batch[CLASSES]].set(stored[:, :-1])
