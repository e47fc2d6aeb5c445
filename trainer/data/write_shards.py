"""Writes the shards that `trainer.data.shards` reads: a list of files, each written by whoever has time for it.

Who writes a file opens the data set by its name, so that a list goes to other processes, or other machines, as it is. A list that
was begun goes on with the files that are not there yet.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from serving.command import UserError
from trainer.data import pairs
from trainer.data.datasets import open_dataset, read_pairs
from trainer.data.encoded import EncodedImages
from trainer.data.shards import CARD, ENDING, VERSION, beside, record
from trainer.data.source import Array, Images

_SHARD_BYTES = 2**28
_SAMPLED = 100  # images whose mean size tells that of all
_BEGUN = "begun.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: the examples from `start` to `end` of a split of a data set."""

    dataset: str
    data_dir: str
    split: str
    start: int
    end: int
    path: str
    fingerprint: str  # of the data set, which whoever writes must see as whoever asks does


@dataclasses.dataclass(frozen=True)
class _Split:
    """Images, and of each its class or its text."""

    images: Images
    labels: Array | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Opened:
    splits: dict[str, _Split]
    class_names: tuple[str, ...]
    fingerprint: str


def write(
    dataset: str, data_dir: str, folder: Path, shards: int, run: Callable[[Sequence[Shard]], None]
) -> dict[str, dict[str, int]]:
    """Has `run` write the data set into `folder`, whole or not at all; returns the examples and files of each split.

    Args:
      dataset: as config.dataset names it; `data_dir` as config.data_dir.
      folder: empty, or not there yet.
      shards: files of each split; 0: as many as makes them 256 MiB.
      run: has `write_shard` write every file of a list.

    Raises:
      UserError: when `folder` is not empty, or the data set cannot be opened.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder")
    data = _opened(dataset, data_dir)
    draft = _draft(folder, data.fingerprint, shards)
    todo, said = [], {}
    for name, split in data.splits.items():
        files = _shards(dataset, data_dir, name, split, shards, draft, data.fingerprint)
        _write_labels(split, Path(files[0].path))
        todo += [shard for shard in files if not Path(shard.path).exists()]
        said[name] = {"examples": len(split.labels), "files": len(files)}
    run(todo)
    card = {"version": VERSION, "classes": list(data.class_names), "from": dataset}
    (draft / CARD).write_text(json.dumps(card, indent=2) + "\n")
    (draft / _BEGUN).unlink()
    if folder.exists():
        folder.rmdir()
    draft.rename(folder)
    return said


def write_shard(shard: Shard) -> None:
    """Writes one file, whole or not at all.

    Raises:
      UserError: when the data set is another one here than where the list was made.
    """
    data, path = _opened(shard.dataset, shard.data_dir), Path(shard.path)
    if data.fingerprint != shard.fingerprint:
        raise UserError(
            f"{socket.gethostname()} sees other images of {shard.dataset}; give all workers the same files"
        )
    split = data.splits[shard.split]
    part = path.with_name(f".{path.name}.{os.getpid()}")
    writer = ArrayRecordWriter(str(part), "group_size:1")  # for random access
    for place in range(shard.start, shard.end):
        content, name = _encoded(split.images, place)
        label = split.labels[place]
        writer.write(record(label if isinstance(label, str) else int(label), name, content))
    writer.close()
    part.rename(path)


@functools.lru_cache(maxsize=1)
def _opened(dataset: str, data_dir: str) -> _Opened:
    if not dataset.startswith(pairs.KIND):
        data = open_dataset(dataset, data_dir, "skip")
        named = {"train": data.train, "validation": data.validation, "test": data.test}
        splits = {name: _Split(split.images, split.labels) for name, split in named.items()}
        return _Opened(splits, data.class_names, data.fingerprint)
    found = read_pairs(dataset, "skip")
    digest = hashlib.sha256()
    for split in found.values():
        digest.update(split.content + json.dumps(split.texts).encode())
    splits = {name: _Split(split.images, split.texts) for name, split in found.items()}
    return _Opened(splits, (), digest.hexdigest())


def _draft(folder: Path, fingerprint: str, shards: int) -> Path:
    """The folder beside `folder` that is written first; one that was begun of the same data stays as it is."""
    draft = folder.with_name(f".{folder.name}.draft")
    begun = json.dumps({"fingerprint": fingerprint, "shards": shards})
    if not (draft / _BEGUN).is_file() or (draft / _BEGUN).read_text() != begun:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / _BEGUN).write_text(begun)
    for part in draft.glob(f".*{ENDING}.*"):  # of a writer that was killed
        part.unlink()
    return draft


def _shards(
    dataset: str, data_dir: str, name: str, split: _Split, shards: int, folder: Path, fingerprint: str
) -> list[Shard]:
    """Runs of examples that follow each other, as equal as can be."""
    total = len(split.labels)
    count = min(shards or _fitting(split), total)
    bounds = np.linspace(0, total, count + 1).round().astype(int).tolist()
    paths = [str(folder / f"{name}-{number:05d}-of-{count:05d}{ENDING}") for number in range(count)]
    places = zip(bounds[:-1], bounds[1:], paths, strict=True)
    return [Shard(dataset, data_dir, name, start, end, path, fingerprint) for start, end, path in places]


def _write_labels(split: _Split, shard: Path) -> None:
    if isinstance(split.labels, tuple):
        beside(shard, "texts.json").write_text(json.dumps(split.labels) + "\n")
    else:
        np.save(beside(shard, "labels.npy"), split.labels.astype(np.int32))


def _fitting(split: _Split) -> int:
    total = len(split.labels)
    sampled = np.linspace(0, total - 1, min(_SAMPLED, total), dtype=int).tolist()
    mean = np.mean([len(_encoded(split.images, place)[0]) for place in sampled])
    return max(1, round(float(mean) * total / _SHARD_BYTES))


def _encoded(images: Images, place: int) -> tuple[bytes, str]:
    """(the image as it is stored, or as PNG, and where it comes from)."""
    if isinstance(images, EncodedImages):
        return images.reader.read(place), images.reader.name(place)
    return _png(np.asarray(images[place])), str(place)


def _png(image: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
