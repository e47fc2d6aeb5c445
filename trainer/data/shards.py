"""`array_record:GLOB`: shards of encoded images, as `python -m tools.convert` writes them; read at random, over a network too.

    FOLDER/dataset.json                        {"version": 1, "classes": […], "from": "folder:photos"}
          /train-00000-of-00008.array_record   records: one line of JSON {"label": 3, "name": "cat/1.jpg"}, then the image as it was
          /train-labels.npy                    int32 (N,), in the order of the records

Files of a split are in the order of their names; `GLOB` may leave out some splits, but train.
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
from trainer.data.encoded import EncodedImages
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


def record(label: int, name: str, content: bytes) -> bytes:
    """One record, of an encoded image."""
    return json.dumps({"label": label, "name": name}).encode() + b"\n" + content


def load(pattern: str, sound: Sound) -> Dataset:
    """The data set of the files that match `pattern`, whose images `sound` has looked at.

    Raises:
      UserError: when none does, or they are not as `tools.convert` writes them.
    """
    files = sorted(glob.glob(str(Path(pattern).expanduser())))
    if not files:
        raise UserError(f"array_record:{pattern}: no file matches; {_MAKE}")
    folder = Path(files[0]).parent
    card = _card(folder)
    classes = tuple(card["classes"])
    found = {split: [file for file in files if Path(file).name.startswith(f"{split}-")] for split in SPLITS}
    if not found["train"]:
        raise UserError(f"array_record:{pattern}: none of the {len(files)} files is of train; {_MAKE}")
    validation = found["validation"] or found["test"] or found["train"]
    chosen = {"train": found["train"], "validation": validation, "test": found["test"] or validation}
    sources = [_source(files) for files in chosen.values()]
    kept, contents = zip(*(sound.of(source, classes) for source in sources), strict=True)
    return of_contents(f"array_record:{pattern}", kept, classes, contents)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        card = json.loads(path.read_text())
        if card["version"] != VERSION:
            raise ValueError(f"version {card['version']}, this is {VERSION}")
        return {"classes": [str(name) for name in card["classes"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_MAKE}") from error


def _source(files: Sequence[str]) -> ImageSource:
    first = Path(files[0])
    split = first.name.partition("-")[0]
    path = first.parent / f"{split}-labels.npy"
    try:
        labels: Array = np.load(path).astype(np.int32)
        count = len(ArrayRecordDataSource(list(files)))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} or its shards cannot be read ({error}); {_MAKE}") from error
    if len(labels) != count:
        raise UserError(
            f"{split}: {len(files)} files hold {count} records, {path.name} {len(labels)} labels; some are missing: {_MAKE}"
        )
    return ImageSource(EncodedImages(Records(tuple(files), count)), labels)
