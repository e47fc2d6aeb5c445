"""What a compression is given, opened: the model that is cut, its data, the calibration images, and how it is cut."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, description
from trainer.checkpoint import Loaded
from trainer.compress import subject, validation
from trainer.compress.allocate import Rounding
from trainer.compress.moments import Array
from trainer.compress.origin import Origin
from trainer.compress.pairs import Pair
from trainer.compress.repair import REVISION, Repair, Seen
from trainer.compress.search import Teacher
from trainer.compress.stages import clear
from trainer.config import Compression
from trainer.data.datasets import open_dataset
from trainer.data.source import Dataset
from trainer.description import ViT
from trainer.models.build import Params, flatten


@dataclasses.dataclass(frozen=True)
class Given:
    """`teacher` is what is cut, `loaded` its checkpoint; `first` is the checkpoint of the first teacher, from `origin`.

    Of a `pair` it is the image tower: `loaded` holds it as it is, `teacher` its stand-in, by which plans are judged.
    """

    config: Compression
    origin: Origin
    first: Path
    loaded: Loaded
    data: Dataset
    teacher: Teacher
    rounding: Rounding
    labels: Array  # of the calibration images
    calibration_hash: str
    pair: Pair | None = None

    def worth(self, model: ViT, params: Params) -> float:
        """Validation top-1; of a pair's tower how often its embedding is nearest to the teacher's of the same image."""
        spec, source, batch = self.loaded.preprocess, self.data.validation, self.teacher.how.batch
        if self.pair is None:
            return validation.top1(model, params, spec, source, batch)
        return validation.found_again(
            validation.logits(model, params, spec, source, batch), self._teachers_embeddings
        )

    @functools.cached_property
    def _teachers_embeddings(self) -> Array:
        spec, source, batch = self.loaded.preprocess, self.data.validation, self.teacher.how.batch
        return validation.logits(self.teacher.model, self.loaded.params, spec, source, batch)

    @functools.cached_property
    def teacher_top1(self) -> float:
        """Validation top-1 of what is cut."""
        return self.worth(self.teacher.model, self.loaded.params)

    def seen(self, keep: bool = False) -> Seen:
        """What the teacher makes of the calibration images, by which plans are carried out as they were judged."""
        teacher = self.teacher
        return Seen(teacher.model, teacher.params, teacher.images, teacher.how.batch, keep)

    def teacher_tested(self) -> float:
        """Top-1 of what is cut, a classifier, on the test images, by which nothing is chosen."""
        spec, source, batch = self.loaded.preprocess, self.data.test, self.teacher.how.batch
        return validation.top1(self.teacher.model, self.loaded.params, spec, source, batch)

    @property
    def hashes(self) -> dict[str, str]:
        """What any result of this is made of besides its configuration: what a thing is called → its sha256."""
        return {
            "teacher": self.loaded.meta["weights_hash"],
            "calibration images": self.calibration_hash,
            "closed-form repair": hashlib.sha256(REVISION.encode()).hexdigest(),
        }

    @property
    def basis(self) -> dict[str, str]:
        """What scores, losses and judgements are made of: `hashes`, and what of the configuration they depend on."""
        config = self.config
        how = {"seed": config.seed, "score": config.score, "ridge": config.ridge, **vars(config.calibration)}
        return {**self.hashes, "scores and fits": json.dumps(how)}

    @property
    def image_size(self) -> int:
        """The side of the images that the model sees."""
        return self.loaded.preprocess.height


def open_given(config: Compression, origin: Origin) -> Given:
    """Opens the teacher and everything that `config` names.

    Raises:
      UserError: for what cannot be read or does not belong together.
    """
    data = open_dataset(config.dataset, config.data_dir, config.bad_images)
    loaded, pair = subject.load(origin, data)
    if pair:
        _require_no_training(config)
    images, labels, calibration_hash = _calibration(config, loaded.preprocess, data)
    rounding = Rounding(config.round_mlp, config.round_head_dim, config.round_width)
    teacher, first = _teacher(config, loaded, images), Path(origin.path)
    if pair:
        params = pair.stand_in(teacher.model, teacher.params, images, teacher.how.batch)
        how = dataclasses.replace(teacher.how, predicts=False)
        teacher = dataclasses.replace(teacher, params=params, how=how)
    return Given(config, origin, first, loaded, data, teacher, rounding, labels, calibration_hash, pair)


def _require_no_training(config: Compression) -> None:
    for key, has, wants in (
        ("until", config.until, "cut"),
        ("calibration.labelled", config.calibration.labelled, False),
    ):
        if has != wants:
            raise UserError(
                f"{key}={has} is for classifiers, and this is a pair of towers, whose image tower is only cut and "
                f"repaired: set --config.{key}={wants}, and export what it leaves with python -m trainer.export"
            )


def with_teacher_in(given: Given, folder: Path) -> Given:
    """The same with published weights as a checkpoint in `folder`, which training and later runs begin with."""
    if not given.origin.weights or given.pair:  # of which nothing is trained
        return given
    digest, loaded = checkpoint.weights_hash(given.loaded.params), given.loaded
    if not checkpoint.steps(folder) or checkpoint.load(folder).meta["weights_hash"] != digest:
        clear(folder)  # of a compression that was refused
        meta = {"stage": "imported", "fingerprint": given.data.fingerprint, "dataset": given.data.name}
        checkpoint.save_model(
            folder, checkpoint.Card(loaded.description, loaded.preprocess, loaded.labels, meta), loaded.params
        )
    # From here on the teacher is that checkpoint, whose hash is of its parameters and not of the file that they came in.
    meta = {**loaded.meta, "weights_hash": digest}
    return dataclasses.replace(given, first=folder, loaded=dataclasses.replace(loaded, meta=meta))


def cutting(given: Given, path: Path, config: Compression) -> Given:
    """The same with the model at `path` to cut, as `config` says: a rung of a ladder begins where the last one ended."""
    loaded = checkpoint.load(path)
    teacher = _teacher(config, loaded, given.teacher.images)
    return dataclasses.replace(given, config=config, loaded=loaded, teacher=teacher)


def _teacher(config: Compression, loaded: Loaded, images: Array) -> Teacher:
    model = description.require_vit(loaded.description, "compression")
    broken = [name for name, array in flatten(loaded.params).items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(
            f"the teacher's array {broken[0]} holds NaN or infinity, and {len(broken) - 1} more do; compression needs finite "
            "weights: train it again, or take an earlier checkpoint"
        )
    how = Repair(config.ridge, config.calibration.batch, refits=config.refits)
    return Teacher(model, loaded.params, images, how)


def _calibration(config: Compression, spec: PreprocessSpec, data: Dataset) -> tuple[Array, Array, str]:
    """Normalised training images chosen by the seed, as evaluation prepares them, their labels, and the sha256 of their pixels."""
    available, asked = len(data.train.images), config.calibration.examples
    if asked > available:
        raise UserError(
            f"calibration.examples={asked} is above the {available} training images of {data.name}; give fewer"
        )
    chosen = np.sort(np.random.RandomState(config.seed).permutation(available)[:asked])
    fitted = np.stack([preprocess.fit(data.train.images[index], spec) for index in chosen])
    return (
        preprocess.normalise(fitted, spec),
        data.train.labels[chosen],
        hashlib.sha256(fitted.tobytes()).hexdigest(),
    )
