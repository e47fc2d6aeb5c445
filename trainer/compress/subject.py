"""The teacher that is cut, read from where it comes: a checkpoint, a bundle, or published weights by their model's name."""

import dataclasses
import logging
from pathlib import Path

from serving.command import UserError
from trainer import checkpoint
from trainer.checkpoint import Loaded
from trainer.compress.origin import Origin
from trainer.compress.pairs import Pair
from trainer.data.source import Dataset
from trainer.description import TwoTowers, require_vit
from trainer.evaluation import check_classes
from trainer.weights import asked

_log = logging.getLogger(__name__)


def load(origin: Origin, data: Dataset) -> tuple[Loaded, Pair | None]:
    """The teacher, on the host, fit to be judged on `data`; of a pair its image tower, and the pair.

    Raises:
      UserError: when it cannot be read, is no ViT with a head, or has other classes or channels than `data`.
    """
    loaded = _imported(origin, data) if origin.weights else checkpoint.load(Path(origin.path))
    pair = None
    if isinstance(loaded.description, TwoTowers):
        pair = Pair(loaded.description, loaded.params)
        tower, params = pair.tower()
        loaded = dataclasses.replace(loaded, description=tower, params=params)
    else:
        check_classes(loaded, data)
        _warn_of_other_images(loaded, data)
    require_vit(loaded.description, "compression")
    has, wants = data.train.channels, loaded.preprocess.channels
    if has != wants and has != 1:  # grey becomes colour, nothing becomes grey
        raise UserError(
            f"data set {data.name} has images of {has} channels, the teacher takes {loaded.preprocess.color}; "
            "use a data set prepared as the teacher's was"
        )
    return loaded, pair


def _warn_of_other_images(loaded: Loaded, data: Dataset) -> None:
    """The same classes do not make the same images: digits are also those of MNIST."""
    learned = loaded.meta.get("dataset") or data.name
    if learned != data.name:
        _log.warning(
            "the teacher learned %s, and is cut and judged on images of %s; give --config.dataset=%s where that is not meant",
            learned,
            data.name,
            learned,
        )


def _imported(origin: Origin, data: Dataset) -> Loaded:
    weights = asked.load(origin.path, origin.model, sha256=origin.sha256, allow=origin.allow)
    model = weights.description
    if not isinstance(model, TwoTowers):
        require_vit(model, "compression")
    if weights.preprocess is None:
        raise UserError(
            f"{origin.path} does not say how its images are prepared; cut a checkpoint or a bundle"
        )
    meta = {"weights_hash": weights.sha256}
    if isinstance(model, TwoTowers):
        return Loaded(model, weights.preprocess, (), meta, weights.params)
    model = require_vit(model, "compression")
    labels = weights.class_names
    if not labels and model.num_classes != len(data.class_names):
        raise UserError(
            f"data set {data.name} has {len(data.class_names)} classes, the weights have {model.num_classes}; "
            "use a data set of their classes"
        )
    # Files of weights often name no classes: then their number is all that can be compared.
    return Loaded(model, weights.preprocess, labels or data.class_names, meta, weights.params)
