"""Inputs to prove, calibrate and score an export on: a data set, a folder of pictures, or drawn numbers where there is neither."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.pictures import read_pictures
from trainer.data.source import Dataset, ImageSource
from trainer.description import TextTower
from trainer.export.graph import Array
from trainer.export.signature import Single

_CHECKED = 256  # images that a proof looks at, where there are as many
_DRAWN = (
    12  # batches of 1, 3 and 8: a wrong graph is off on all of them, and large models take seconds for each
)


class Samples(Protocol):
    """Model inputs: normalised images float32 (N, H, W, C), or tokens int32 (N, T)."""

    def proof(self) -> Array:
        """What live and exported model are compared on."""
        ...

    def calibration(self, count: int) -> Array:
        """`count` inputs for int8 ranges; UserError when a data set has fewer, or none are real."""
        ...

    def scored(self) -> tuple[Array, Array, str] | None:
        """Inputs, their labels int (N,), and what they are called; None without labels."""
        ...


@dataclasses.dataclass(frozen=True)
class DatasetSamples:
    """Of a data set: validation images prove and score, training images calibrate, as evaluation prepares them."""

    data: Dataset
    spec: PreprocessSpec

    def proof(self) -> Array:
        """See `Samples`."""
        return self._normalised(self.data.validation, _CHECKED)

    def calibration(self, count: int) -> Array:
        """See `Samples`."""
        _require(count, len(self.data.train), self.data.name)
        return self._normalised(self.data.train, count)

    def scored(self) -> tuple[Array, Array, str] | None:
        """See `Samples`; texts are no labels."""
        split = self.data.validation
        if not self.data.class_names:
            return None
        images = self._normalised(split, len(split))
        return images, split.labels, f"{self.data.name} validation, {len(split)} images"

    def _normalised(self, source: ImageSource, count: int) -> Array:
        return source.prepared(range(min(count, len(source))), self.spec)


@dataclasses.dataclass(frozen=True)
class PictureSamples:
    """Of picture files without labels: the first ones prove, and calibrate."""

    files: Sequence[Path]
    spec: PreprocessSpec

    def proof(self) -> Array:
        """See `Samples`."""
        return read_pictures(self.files[:_CHECKED], self.spec)

    def calibration(self, count: int) -> Array:
        """`count` of the pictures, all of them where there are fewer."""
        return read_pictures(self.files[:count], self.spec)

    def scored(self) -> None:
        """See `Samples`."""
        return


@dataclasses.dataclass(frozen=True)
class DrawnSamples:
    """Numbers drawn from a seed, in the range of the model's input: enough to compare two graphs, not to choose int8 ranges."""

    model: Single

    def proof(self) -> Array:
        """See `Samples`."""
        rng = np.random.default_rng(0)
        if isinstance(self.model, TextTower):
            texts = rng.integers(1, self.model.vocab_size, (_DRAWN, self.model.max_tokens))
            return texts.astype(np.int32)
        images = rng.uniform(-1, 1, (_DRAWN, *self.model.image_size, self.model.channels))
        return images.astype(np.float32)

    def calibration(self, count: int) -> Array:
        """See `Samples`."""
        raise UserError("int8 ranges need real pictures: give a folder of them as --images, or export fp32")

    def scored(self) -> None:
        """See `Samples`."""
        return


def _require(asked: int, available: int, name: str) -> None:
    if asked > available:
        raise UserError(
            f"--calibration_examples={asked} is above the {available} training images of {name}; "
            f"give --calibration_examples={available}"
        )
