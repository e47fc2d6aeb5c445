"""`tfds:NAME`: data sets of TensorFlow Datasets with random access, where that is installed and they are prepared.

They must have been prepared in the array_record format (`tfds build NAME --file_format=array_record`); reading needs no TensorFlow.
"""

import dataclasses
import hashlib
import importlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from serving.command import UserError, progress
from trainer.data.bad_images import Sound
from trainer.data.encoded import EncodedImages
from trainer.data.source import Dataset, ImageSource, of_contents, stratified

_INSTALL = "pip install 'vitforge[tfds]'"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Encoded images of a split; see `trainer.data.encoded.Reader`."""

    dataset: str
    split: str
    data_dir: str
    places: tuple[int, ...]

    @cached_property
    def _source(self) -> Any:
        return _opened(self.dataset, self.split, self.data_dir)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        """See `Reader`."""
        return bytes(self._source[self.places[index]]["image"])

    def name(self, index: int) -> str:
        """See `Reader`."""
        return f"tfds:{self.dataset} {self.split} {self.places[index]}"

    def fingerprint(self) -> bytes:
        """Of the name and version of the data set, and of which examples are taken."""
        digest = hashlib.sha256(f"{self._source.dataset_info.full_name} {self.split}".encode())
        digest.update(np.asarray(self.places, "<i8").tobytes())
        return digest.digest()


def load(name: str, data_dir: str, sound: Sound) -> Dataset:
    """The prepared data set `name` of `data_dir` (the library's own folder if empty).

    Its validation is a tenth of train where it has none; its test is the validation where it has none.

    Raises:
      UserError: when the library is not installed, or the data set is not prepared or has no images and labels.
    """
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise UserError(f"tfds:{name} needs TensorFlow Datasets: {_INSTALL}") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        features = builder.info.features
        splits = list(builder.info.splits)
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tfds:{name} cannot be opened ({reason}); prepare it: tfds build {name} --file_format=array_record"
        ) from error
    if not {"image", "label"} <= set(features):
        raise UserError(f"tfds:{name} has {', '.join(features)}; it needs image and label")
    if "train" not in splits:
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_dir}; tfds build {name} --file_format=array_record does that"
        )
    return _assembled(name, data_dir, splits, tuple(features["label"].names), sound)


def _assembled(
    name: str, data_dir: str, splits: list[str], classes: tuple[str, ...], sound: Sound
) -> Dataset:
    cache = sound.cache.with_name("tfds")

    def source(split: str, places: Any = None) -> ImageSource:
        labels = _labels(name, split, data_dir, cache)
        chosen = np.arange(len(labels)) if places is None else places
        reader = Examples(name, split, data_dir, tuple(chosen.tolist()))
        return ImageSource(EncodedImages(reader), labels[chosen])

    if "validation" in splits:
        train, validation = source("train"), source("validation")
    else:
        labels = _labels(name, "train", data_dir, cache)
        train, validation = (
            source("train", part) for part in stratified(labels, (max(1, len(labels) // 10),), 0)
        )
    test = source("test") if "test" in splits else validation
    kept, contents = zip(*(sound.of(one, classes) for one in (train, validation, test)), strict=True)
    return of_contents(f"tfds:{name}", kept, classes, contents)


def _opened(dataset: str, split: str, data_dir: str) -> Any:
    tfds = importlib.import_module("tensorflow_datasets")
    decoders = {"image": tfds.decode.SkipDecoding()}
    return tfds.data_source(
        dataset, split=split, data_dir=data_dir or None, decoders=decoders, download=False
    )


def _labels(dataset: str, split: str, data_dir: str, cache: Path) -> Any:
    """int32 (N,). The library reads labels with their images only: all records once, then the labels are kept in `cache`."""
    source = _opened(dataset, split, data_dir)
    info = source.dataset_info
    said = f"{info.full_name} {split} {info.splits[split].num_examples} {info.splits[split].num_bytes}"
    kept = cache / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npy"
    if kept.is_file():
        return np.load(kept)
    labels = np.empty(len(source), np.int32)
    with progress(len(source), f"labels of {split}") as bar:
        for place in range(len(source)):
            labels[place] = source[place]["label"]
            bar.advance()
    cache.mkdir(parents=True, exist_ok=True)
    draft = kept.with_name(f"{os.getpid()}-{kept.name}")
    np.save(draft, labels)
    draft.replace(kept)
    return labels
