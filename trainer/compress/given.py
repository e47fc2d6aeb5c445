"""What a compression is given, opened: the model that is cut, its data, the calibration images, and how it is cut."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, description
from trainer.checkpoint import Loaded
from trainer.compress import subject
from trainer.compress.allocate import Rounding
from trainer.compress.moments import Array
from trainer.compress.repair import Repair
from trainer.compress.search import Teacher
from trainer.compress.subject import Origin
from trainer.config import Compression
from trainer.data.datasets import open_dataset
from trainer.data.source import Dataset


@dataclasses.dataclass(frozen=True)
class Given:
    """`teacher` is what is cut, `loaded` its checkpoint; `first` is the checkpoint of the first teacher, from `origin`."""

    config: Compression
    origin: Origin
    first: Path
    loaded: Loaded
    data: Dataset
    teacher: Teacher
    rounding: Rounding
    calibration_hash: str

    @property
    def image_size(self) -> int:
        """The side of the images that the model sees."""
        return self.loaded.preprocess.height


def open_given(config: Compression, origin: Origin) -> Given:
    """Opens the teacher and everything that `config` names.

    Raises:
      UserError: for what cannot be read or does not belong together.
    """
    data = open_dataset(config.dataset, config.data_dir)
    loaded = subject.load(origin, data)
    images, calibration_hash = _calibration(config, loaded.preprocess, data)
    rounding = Rounding(config.round_mlp, config.round_head_dim, config.round_width)
    teacher, first = _teacher(config, loaded, images), Path(origin.path)
    return Given(config, origin, first, loaded, data, teacher, rounding, calibration_hash)


def with_teacher_in(given: Given, folder: Path) -> Given:
    """The same with published weights as a checkpoint in `folder`, which training and later runs begin with."""
    if not given.origin.model:
        return given
    if not checkpoint.steps(folder):
        loaded = given.loaded
        meta = {"stage": "imported", "fingerprint": given.data.fingerprint, "dataset": given.data.name}
        checkpoint.save_model(
            folder, checkpoint.Card(loaded.description, loaded.preprocess, loaded.labels, meta), loaded.params
        )
    return dataclasses.replace(given, first=folder)


def cutting(given: Given, path: Path, config: Compression) -> Given:
    """The same with the model at `path` to cut, as `config` says: a rung of a ladder begins where the last one ended."""
    loaded = checkpoint.load(path)
    teacher = _teacher(config, loaded, given.teacher.images)
    return dataclasses.replace(given, config=config, loaded=loaded, teacher=teacher)


def _teacher(config: Compression, loaded: Loaded, images: Array) -> Teacher:
    model = description.require_vit(loaded.description, "compression")
    return Teacher(model, loaded.params, images, Repair(config.ridge, config.calibration.batch))


def _calibration(config: Compression, spec: PreprocessSpec, data: Dataset) -> tuple[Array, str]:
    """Normalised training images chosen by the seed, as evaluation prepares them, and the sha256 of their pixels."""
    available, asked = len(data.train.images), config.calibration.examples
    if asked > available:
        raise UserError(
            f"calibration.examples={asked} is above the {available} training images of {data.name}; give fewer"
        )
    chosen = np.random.RandomState(config.seed).permutation(available)[:asked]
    fitted = np.stack([preprocess.fit(data.train.images[index], spec) for index in np.sort(chosen)])
    return preprocess.normalise(fitted, spec), hashlib.sha256(fitted.tobytes()).hexdigest()
