"""Writes the shards that `trainer.data.shards` reads."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from serving.command import UserError, progress
from trainer.data.encoded import EncodedImages
from trainer.data.shards import CARD, ENDING, SPLITS, VERSION, record
from trainer.data.source import Array, Dataset, ImageSource

_SHARD_BYTES = 2**28
_SAMPLED = 100  # images whose mean size tells that of all


def write(data: Dataset, folder: Path, shards: int) -> dict[str, int]:
    """Writes `data` into `folder`, whole or not at all; returns the files of each split. 0 shards: files of some 256 MiB.

    Raises:
      UserError: when `folder` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder")
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    splits = zip(SPLITS, (data.train, data.validation, data.test), strict=True)
    files = {split: _write(source, draft, split, shards) for split, source in splits}
    card = {"version": VERSION, "classes": list(data.class_names), "from": data.name}
    (draft / CARD).write_text(json.dumps(card, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()
    draft.rename(folder)
    return files


def _write(source: ImageSource, folder: Path, split: str, shards: int) -> int:
    """The files that were written, each a run of examples that follow each other."""
    count = min(shards or _fitting(source), len(source))
    np.save(folder / f"{split}-labels.npy", source.labels.astype(np.int32))
    with progress(len(source), split) as bar:
        for number, places in enumerate(np.array_split(np.arange(len(source)), count)):
            path = folder / f"{split}-{number:05d}-of-{count:05d}{ENDING}"
            writer = ArrayRecordWriter(str(path), "group_size:1")  # for random access
            for place in places.tolist():
                content, name = _encoded(source, place)
                writer.write(record(int(source.labels[place]), name, content))
                bar.advance()
            writer.close()
    return count


def _fitting(source: ImageSource) -> int:
    sampled = np.linspace(0, len(source) - 1, min(_SAMPLED, len(source)), dtype=int).tolist()
    mean = np.mean([len(_encoded(source, place)[0]) for place in sampled])
    return max(1, round(float(mean) * len(source) / _SHARD_BYTES))


def _encoded(source: ImageSource, place: int) -> tuple[bytes, str]:
    """(the image as it is stored, or as PNG, and where it comes from)."""
    images = source.images
    if isinstance(images, EncodedImages):
        return images.reader.read(place), images.reader.name(place)
    return _png(np.asarray(images[place])), str(place)


def _png(image: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
