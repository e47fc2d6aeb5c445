"""Where training starts when it does not start from nothing: weights of any origin, fitted to the data's classes and size."""

import dataclasses
from pathlib import Path

import numpy as np

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import checkpoint
from trainer.description import Classifier, TextTower, TwoTowers
from trainer.models.build import Params
from trainer.weights import asked
from trainer.weights.adapt import shapes_of
from trainer.weights.contents import is_pair
from trainer.weights.load import Weights


@dataclasses.dataclass(frozen=True)
class Start:
    """First weights, the model that they are of, and how images are prepared for it.

    `weights_hash` is the sha256 of the first weights, `calibration_hash` that of the images a cut was made from, if any.
    """

    description: Classifier
    params: Params
    preprocess: PreprocessSpec
    weights_hash: str
    calibration_hash: str


def start_from(path: str, model: str, image_size: int, class_names: tuple[str, ...]) -> Start:
    """The weights at `path` (a published file of the named `model`, a checkpoint or a bundle) at this size and for these classes.

    The head is kept where the classes are the same, and otherwise begins at zero; positions are resized (arXiv:2010.11929, §3.2).

    Raises:
      UserError: for weights that cannot be read or do not fit, or that are no classifier's or image tower's.
    """
    own = bool(checkpoint.steps(Path(path)))
    card = checkpoint.load_card(path) if own else None
    same_classes = card is not None and card.labels == class_names
    # A pair's heads lead into its embeddings and are part of it; its image tower gets a classifier below.
    whole = same_classes or (not own and bool(model) and is_pair(model))
    weights = asked.load(
        path,
        "" if own else model,
        image_size=(image_size, image_size),
        head="keep" if whole else "reinit",
        num_classes=None if whole else len(class_names),
    )
    described, params = _classifier(weights, len(class_names), path)
    return Start(
        described,
        params,
        weights.prepared(path, (image_size, image_size)),
        checkpoint.weights_hash(params),
        card.meta.get("calibration_hash", "") if card else "",
    )


def _classifier(weights: Weights, num_classes: int, path: str) -> tuple[Classifier, Params]:
    """The model as a classifier; the image tower of a pair gets a head."""
    model = weights.description
    if isinstance(model, TextTower):
        raise UserError(f"{path} is a text tower; training takes what sees images")
    if not isinstance(model, TwoTowers):
        return model, weights.params
    image = dataclasses.replace(model.image, num_classes=num_classes)
    head = {
        name.removeprefix("head/"): np.zeros(shape, np.float32)
        for name, shape in shapes_of(image).items()
        if name.startswith("head/")
    }
    return image, {**weights.params["image"], "head": head}
