"""`array_record:GLOB`: shards of encoded images, as `python -m tools.convert` writes them; read at random, over a network too.

    FOLDER/dataset.json                        {"version": 1, "classes": […], "from": "folder:photos"}
          /train-00000-of-00008.array_record   records: one line of JSON {"label": 3, "name": "cat/1.jpg"}, then the image as it was
          /train-labels.npy                    int32 (N,), in the order of the records
          /train-texts.json                    of pairs, in place of labels; their records say {"text": "a cat", "name": "1.jpg"}

Files of a split are in the order of their names; `GLOB` may leave out the test, which is validation then.
"""

import dataclasses
import glob
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from serving.command import UserError
from trainer.data.bad_images import Sound
from trainer.data.encoded import EncodedImages, Reader
from trainer.data.source import Array, Dataset, ImageSource, of_contents

VERSION, CARD, ENDING = 1, "dataset.json", ".array_record"
SPLITS = ("train", "validation", "test")
_MAKE = "make them with python -m tools.convert"


@dataclasses.dataclass(frozen=True)
class Records:
    """Encoded images in array_record `files`, `count` of them; see `trainer.data.encoded.Reader`."""

    files: tuple[str, ...]
    count: int

    @cached_property
    def _source(self) -> Any:
        return ArrayRecordDataSource(list(self.files))

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "count": self.count}  # open files stay in their process

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        """See `Reader`."""
        return self._source[index].partition(b"\n")[2]

    def name(self, index: int) -> str:
        """See `Reader`."""
        said = json.loads(self._source[index].partition(b"\n")[0])
        return f"{Path(self.files[0]).parent}: {said['name']} (record {index})"

    def fingerprint(self) -> bytes:
        """Of the names and sizes of all files, wherever they lie."""
        digest = hashlib.sha256()
        for file in map(Path, self.files):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        return digest.digest()


def record(label: int | str, name: str, content: bytes) -> bytes:
    """One record, of an encoded image with its class or its text."""
    said = {"text": label} if isinstance(label, str) else {"label": label}
    return json.dumps({**said, "name": name}).encode() + b"\n" + content


def load(pattern: str, sound: Sound) -> Dataset:
    """The data set of the files that match `pattern`, whose images `sound` has looked at.

    Raises:
      UserError: when none does, or they are not as `tools.convert` writes them.
    """
    name = f"array_record:{pattern}"
    found = _files(name, pattern)
    classes = _classes(found["train"][0].parent)
    if not classes:
        raise UserError(f"{name} are images with texts; ask for pairs:{pattern}")
    sources = [_source(files) for files in found.values()]
    kept, contents = zip(*(sound.of(source, classes) for source in sources), strict=True)
    return of_contents(name, kept, classes, contents)


def read_texts(pattern: str) -> dict[str, tuple[Reader, tuple[str, ...]]]:
    """Split → the images and texts of the files that match `pattern`.

    Raises:
      UserError: when none does, or they are not as `tools.convert` writes those of pairs.
    """
    found = _files(f"pairs:{pattern}", pattern)
    if classes := _classes(found["train"][0].parent):
        raise UserError(
            f"pairs:{pattern} are images of {len(classes)} classes; ask for array_record:{pattern}"
        )
    return {split: _texts(files) for split, files in found.items()}


def _files(name: str, pattern: str) -> dict[str, list[Path]]:
    """Split → its files, in order; the test takes those of validation where it has none."""
    files = [Path(file) for file in sorted(glob.glob(str(Path(pattern).expanduser())))]
    if not files:
        raise UserError(f"{name}: no file matches; {_MAKE}")
    found = {split: [file for file in files if file.name.startswith(f"{split}-")] for split in SPLITS}
    for split in SPLITS[:2]:
        if not found[split]:
            raise UserError(f"{name}: none of the {len(files)} files is of {split}; match those, or {_MAKE}")
    return {**found, "test": found["test"] or found["validation"]}


def _classes(folder: Path) -> tuple[str, ...]:
    """Of the card; none: these are images with texts."""
    path = folder / CARD
    try:
        card = json.loads(path.read_text())
        if card["version"] != VERSION:
            raise ValueError(f"version {card['version']}, this is {VERSION}")
        return tuple(str(name) for name in card["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_MAKE}") from error


def _source(files: Sequence[Path]) -> ImageSource:
    path, count = beside(files[0], "labels.npy"), _count(files)
    try:
        labels: Array = np.load(path).astype(np.int32)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_MAKE}") from error
    _require_all(files, count, path, len(labels), "labels")
    return ImageSource(EncodedImages(_records(files, count)), labels)


def _texts(files: Sequence[Path]) -> tuple[Reader, tuple[str, ...]]:
    path, count = beside(files[0], "texts.json"), _count(files)
    try:
        texts = tuple(str(text) for text in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_MAKE}") from error
    _require_all(files, count, path, len(texts), "texts")
    return _records(files, count), texts


def beside(shard: Path, what: str) -> Path:
    """The file that holds `what` of a shard's whole split."""
    return shard.with_name(f"{shard.name.partition('-')[0]}-{what}")


def _records(files: Sequence[Path], count: int) -> Records:
    return Records(tuple(map(str, files)), count)


def _count(files: Sequence[Path]) -> int:
    try:
        return len(ArrayRecordDataSource([str(file) for file in files]))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the shards of {files[0].parent} cannot be read ({error}); {_MAKE}") from error


def _require_all(files: Sequence[Path], count: int, path: Path, have: int, what: str) -> None:
    if have != count:
        raise UserError(
            f"{path.name.partition('-')[0]}: {len(files)} files hold {count} records, {path.name} {have} {what}; "
            f"some are missing: {_MAKE}"
        )
