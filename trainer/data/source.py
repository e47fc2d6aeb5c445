"""Data sets whose examples can be read at random, in splits that never change."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec

_log = logging.getLogger(__name__)
_NAMED = 10  # of bad labels, in a message
Array = np.ndarray[Any, np.dtype[Any]]


class Images(Protocol):
    """The images of a split, each uint8 (H, W, C), read one at a time: an array of them, or files decoded as they are read."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Array: ...
    def __iter__(self) -> Iterator[Array]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """One split: N images of `channels` channels and labels int32 (N,); known by its identity."""

    images: Images
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example but for its image, which views prepare in ways of their own."""
        return {"label": self.labels[index], "index": np.int64(index)}

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return 3 if not isinstance(self.images, np.ndarray) else int(self.images.shape[-1])

    def prepared(self, places: range, spec: PreprocessSpec) -> Array:
        """The images at `places` as a model takes them: float32 (places, H, W, C)."""
        return preprocess.prepare_pixels(map(self.images.__getitem__, places), spec)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three fixed splits, the names of the classes, and a sha256 of all of it in hexadecimal."""

    name: str
    train: ImageSource
    validation: ImageSource
    test: ImageSource
    class_names: tuple[str, ...]
    fingerprint: str


def assemble(
    name: str, splits: Sequence[ImageSource], class_names: tuple[str, ...], skip: bool = False
) -> Dataset:
    """A data set of its train, validation and test splits, held in arrays, with the fingerprint of every pixel.

    Raises:
      UserError: for an empty split, or labels without a class unless they are to be left out (`skip`).
    """
    contents = []
    parts = zip(splits, ("train", "validation", "test"), strict=True)
    splits = [_with_classes(name, part, split, len(class_names), skip) for split, part in parts]
    for split in splits:
        images = np.asarray(split.images)
        contents.append(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes())
    return of_contents(name, splits, class_names, contents)


def _with_classes(name: str, part: str, split: ImageSource, classes: int, skip: bool) -> ImageSource:
    """`split` without the examples whose label has no class."""
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= classes))
    if not len(wrong):
        return split
    first = ", ".join(f"image {place} (label {split.labels[place]})" for place in wrong[:_NAMED])
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    said = f"{name}: {len(wrong)} of {len(split)} images of its {part} split have labels without a class: {first}{more}"
    if not skip:
        raise UserError(f"{said}; labels go from 0 to {classes - 1}; bad_images=skip leaves them out")
    _log.warning("%s; they are left out", said)
    kept = np.delete(np.arange(len(split)), wrong)
    return ImageSource(np.asarray(split.images)[kept], split.labels[kept])


def require_channels(source: ImageSource, taken: int, what: str) -> None:
    """Refuses pictures of more channels than a model takes: grey ones become colour ones by themselves, not the other way round.

    Raises:
      UserError: naming `what` shows them and what is wanted.
    """
    if source.channels not in (1, taken):
        raise UserError(
            f"{what} has pictures of {source.channels} channels, the model takes grey ones; use weights that take colours"
        )


def of_contents(
    name: str, splits: Sequence[ImageSource], class_names: tuple[str, ...], contents: Sequence[bytes]
) -> Dataset:
    """A data set of its train, validation and test splits; `contents` of each tells its images from others.

    Raises:
      UserError: for an empty split, or a label without a class.
    """
    digest = hashlib.sha256(repr(class_names).encode())
    for split, content, part in zip(splits, contents, ("train", "validation", "test"), strict=True):
        if not len(split):
            raise UserError(f"{name} has no examples for its {part} split; give it more images")
        if split.labels.min() < 0 or split.labels.max() >= len(class_names):
            label, last = max(split.labels, key=abs), len(class_names) - 1
            raise UserError(f"{name} has the label {label} in its {part} split; labels go from 0 to {last}")
        digest.update(content)
        digest.update(split.labels.astype("<i4").tobytes())
    train, validation, test = splits
    return Dataset(name, train, validation, test, class_names, digest.hexdigest())


def split_off(images: Array, labels: Array, sizes: Sequence[int], seed: int) -> list[ImageSource]:
    """Disjoint random splits of the given sizes, the rest first, as `stratified` cuts them."""
    return [ImageSource(images[part], labels[part]) for part in stratified(labels, sizes, seed)]


def stratified(labels: Array, sizes: Sequence[int], seed: int) -> list[Array]:
    """The places of disjoint random splits of the given sizes, the rest first, all with the classes in the proportion of the whole.

    The same ones everywhere and for ever: numpy guarantees the stream of RandomState, unlike that of newer generators.
    """
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    # Each class is spread evenly over [0, 1); any stretch of that order is stratified.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(place, kind="stable")]
    bounds = np.cumsum([len(labels) - sum(sizes), *sizes])[:-1]
    return np.split(order, bounds)
