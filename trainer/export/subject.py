"""What is exported: a model, its arrays, and all that a bundle says of them; from a checkpoint or from published weights."""

import dataclasses
from pathlib import Path

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from serving.tokenise import spec_of, tokenise
from trainer import checkpoint
from trainer.data.datasets import open_again
from trainer.data.pictures import find_pictures
from trainer.description import Model, TextTower, TwoTowers
from trainer.evaluation import check_classes
from trainer.export.samples import DatasetSamples, DrawnSamples, PictureSamples, Samples
from trainer.export.signature import IMAGE_TOWER, MODEL, TEXT_TOWER, Single
from trainer.models.build import Params
from trainer.weights.load import Weights

_HASHES = ("config_text", "config_hash", "weights_hash", "teacher_hash", "calibration_hash")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model to export; `provenance` has stage and the hashes of the manifest."""

    description: Model
    params: Params
    preprocess: PreprocessSpec | None
    labels: tuple[str, ...]
    provenance: dict[str, str]
    images: Samples | None  # None: numbers are drawn
    vocab: Path | None = None  # of a pair's text tower

    def graphs(self) -> dict[str, Single]:
        """The descriptions of its graphs by name: `model`, or `image` and `text` of a pair."""
        model = self.description
        return (
            {IMAGE_TOWER: model.image, TEXT_TOWER: model.text}
            if isinstance(model, TwoTowers)
            else {MODEL: model}
        )

    def samples(self, graph: Single) -> Samples:
        """Inputs of one of its graphs."""
        if isinstance(graph, TextTower) or self.images is None:
            return DrawnSamples(graph)
        return self.images


def from_checkpoint(path: str, data_dir: str, vocab: str = "") -> Subject:
    """A trained or cut model, proven on the images of its own data set; `vocab` is of a pair's text tower.

    Raises:
      UserError: when the checkpoint or its data set cannot be read, or they do not belong together.
    """
    loaded = checkpoint.load(path)
    data = open_again(loaded.meta, data_dir, vocab)
    if not isinstance(loaded.description, TwoTowers):  # which knows no classes
        check_classes(loaded, data)
    return Subject(
        loaded.description,
        loaded.params,
        loaded.preprocess,
        loaded.labels,
        {"stage": loaded.meta["stage"], **{name: loaded.meta[name] for name in _HASHES}},
        DatasetSamples(data, loaded.preprocess),
        _vocabulary(vocab, loaded.description),
    )


def from_weights(weights: Weights, pictures: list[str], stage: str = "published", vocab: str = "") -> Subject:
    """Weights of any origin, proven on `pictures` (files and folders), or on drawn numbers without any.

    Raises:
      UserError: for pictures that are none, or a vocabulary that is none or has no use.
    """
    model = weights.description
    images = None
    if pictures and weights.preprocess is not None:
        images = PictureSamples(find_pictures(pictures), weights.preprocess)
    hashes = dict.fromkeys(_HASHES, "") | {"weights_hash": checkpoint.weights_hash(weights.params)}
    return Subject(
        model,
        weights.params,
        weights.preprocess,
        weights.class_names,
        {"stage": stage, **hashes},
        images,
        _vocabulary(vocab, model),
    )


def _vocabulary(path: str, model: Model) -> Path | None:
    """The file of a pair's vocabulary, refused here when it cannot be read or is of a wrong kind."""
    if not path:
        return None
    if not isinstance(model, TwoTowers):
        raise UserError("--vocab is for LiT pairs; this model reads no texts")
    tokenise(["a text"], spec_of(Path(path), model.text.max_tokens), Path(path))
    return Path(path)


def target_of(target: Path, graph: str) -> Path:
    """Where the bundle of `graph` goes when REPO/NAME/VERSION was asked for: a pair becomes NAME-image and NAME-text."""
    if graph == MODEL:
        return target
    return target.parent.with_name(f"{target.parent.name}-{graph}") / target.name
