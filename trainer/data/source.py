"""Data sets by name, as arrays that can be read at random."""

import dataclasses
import difflib
import hashlib
from typing import Any

import numpy as np

from serving.command import UserError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """One split: images uint8 (N, H, W, C) and labels int32 (N,). A Grain random-access source."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three fixed splits, the names of the classes, and a sha256 of all of it."""

    name: str
    train: ImageSource
    validation: ImageSource
    test: ImageSource
    class_names: tuple[str, ...]
    fingerprint: str


def assemble(name: str, train: ImageSource, validation: ImageSource, test: ImageSource, class_names: tuple[str, ...]) -> Dataset:
    """A data set with its fingerprint."""
    digest = hashlib.sha256(repr(class_names).encode())
    for split in (train, validation, test):
        digest.update(np.ascontiguousarray(split.images).tobytes())
        digest.update(np.ascontiguousarray(split.labels).tobytes())
    return Dataset(name, train, validation, test, class_names, digest.hexdigest())


def open_dataset(name: str, data_dir: str = "") -> Dataset:
    """The data set called `name`, its files from `data_dir` where it needs some.

    Raises:
      UserError: for an unknown name (with the nearest), or files that are missing or damaged.
    """
    from trainer.data import digits, fashion_mnist

    known = {"digits": digits.load, "fashion_mnist": fashion_mnist.load}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(f"unknown data set {name!r}; nearest is {near[0]!r}, all are {', '.join(known)}")
    return known[name](data_dir)


def split_off(images: Array, labels: Array, sizes: tuple[int, ...], seed: int) -> list[ImageSource]:
    """Disjoint random splits of the given sizes, the rest first; the same ones everywhere and for ever.

    numpy guarantees the stream of RandomState, unlike that of newer generators.
    """
    order = np.random.RandomState(seed).permutation(len(labels))
    bounds = np.cumsum([len(labels) - sum(sizes), *sizes])[:-1]
    return [ImageSource(images[part], labels[part]) for part in np.split(order, bounds)]
