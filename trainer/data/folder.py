"""`folder:PATH`: pictures in one sub-folder per class, of whose names the classes take theirs.

PATH/CLASS/…                     split here: a tenth for validation, a tenth for the test
PATH/train/CLASS/…               and PATH/validation/ or PATH/val/, PATH/test/ likewise; of what is missing,
                                 validation is a tenth of train, and the test is the validation
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.command import UserError
from trainer.data.bad_images import Sound
from trainer.data.encoded import EncodedImages
from trainer.data.source import Array, Dataset, ImageSource, of_contents, stratified

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_VALIDATION = ("validation", "val")


@dataclasses.dataclass(frozen=True)
class Files:
    """Encoded images in files under `root`; see `trainer.data.encoded.Reader`."""

    root: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """See `Reader`."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """See `Reader`."""
        return f"{self.root}/{self.paths[index]}"

    def fingerprint(self) -> bytes:
        """Of the names and sizes of all files, wherever they lie."""
        digest = hashlib.sha256()
        for index, path in enumerate(self.paths):
            digest.update(f"{path} {_size(Path(self.name(index)))}\n".encode())
        return digest.digest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # whoever reads it says why
        return -1


@dataclasses.dataclass(frozen=True)
class _Found:
    """Files of one folder, by class."""

    root: Path
    paths: Array  # of str, relative
    labels: Array  # int32


def load(path: str, sound: Sound) -> Dataset:
    """The data set of the folder `path`, whose images `sound` has looked at.

    Raises:
      UserError: when there is no such folder, it holds no pictures, or its splits do not know the same classes.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"folder:{path}: there is no such folder; give one with a sub-folder for each class")
    inside = root / "train" if (root / "train").is_dir() else root
    classes = tuple(sorted(one.name for one in inside.iterdir() if _is_class(one)))
    if len(classes) < 2:
        raise UserError(
            f"folder:{path}: {inside} has {len(classes)} sub-folders; it needs one for each class, two at least"
        )
    train = _found(inside, classes)
    empty = [name for label, name in enumerate(classes) if label not in train.labels]
    if empty:
        raise UserError(
            f"folder:{path}: {inside / empty[0]} holds no pictures (files ending in {', '.join(sorted(_ENDINGS))}); "
            "put some there, or remove it"
        )
    splits = _split(root, train, classes) if inside != root else _cut(train, 2)
    sources, contents = zip(*(sound.of(_source(split), classes) for split in splits), strict=True)
    return of_contents(f"folder:{path}", sources, classes, contents)


def _split(root: Path, train: _Found, classes: Sequence[str]) -> list[_Found]:
    """Train, validation and test from the folders that there are."""
    given = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    test = _found(root / "test", classes) if (root / "test").is_dir() else None
    if given is None:
        kept, validation = _cut(train, 1)
        return [kept, validation, test or validation]
    validation = _found(given, classes)
    return [train, validation, test or validation]


def _found(folder: Path, classes: Sequence[str]) -> _Found:
    others = sorted(one.name for one in folder.iterdir() if _is_class(one) and one.name not in classes)
    if others:
        raise UserError(
            f"{folder} has the class {others[0]!r}, which train has not; give both the same classes"
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(
            file.relative_to(folder).as_posix()
            for file in (folder / name).rglob("*")
            if file.suffix.lower() in _ENDINGS
        )
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(
            f"{folder} holds no pictures in its sub-folders (files ending in {', '.join(sorted(_ENDINGS))})"
        )
    return _Found(folder, np.array(paths), np.array(labels, np.int32))


def _is_class(path: Path) -> bool:
    """Hidden folders are the business of editors and notebooks."""
    return path.is_dir() and not path.name.startswith(".")


def _cut(found: _Found, parts: int) -> list[_Found]:
    """The files in so many tenths, each class in its proportion, and the rest first."""
    tenth = max(1, len(found.labels) // 10)
    places = stratified(found.labels, (tenth,) * parts, seed=0)
    return [_Found(found.root, found.paths[part], found.labels[part]) for part in places]


def _source(found: _Found) -> ImageSource:
    return ImageSource(EncodedImages(Files(str(found.root), tuple(found.paths.tolist()))), found.labels)
