"""What a checkpoint says of itself, apart from its arrays."""

import dataclasses
from typing import Any

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import description
from trainer.description import Classifier, TextTower, TwoTowers
from trainer.models.build import Params

Meta = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself: the model, how images are prepared for it, its classes, and where it came from.

    `meta` holds stage, dataset, data_dir, bad_images, fingerprint, config_text, config_hash, teacher_hash, calibration_hash and
    step; of a training also pretrained_hash, the weights_hash of what it began with.
    """

    description: Classifier | TwoTowers
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    meta: Meta

    def to_json(self) -> Meta:
        """One JSON object."""
        return {
            "description": description.to_json(self.description),
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            **self.meta,
        }

    @property
    def classifier(self) -> Classifier:
        """The model, where it is a classifier of images.

        Raises:
          UserError: when it is a pair, or has no head.
        """
        return description.require_classifier(self.description, "this command")

    @staticmethod
    def from_json(value: Meta) -> "Card":
        """The card that `to_json` wrote."""
        rest = dict(value)
        model = description.from_json(rest.pop("description"))
        if isinstance(model, TextTower):
            raise UserError(
                "a checkpoint of a text tower alone cannot be read; of texts there are only pairs"
            )
        preprocess = PreprocessSpec.from_json(rest.pop("preprocess"))
        return Card(model, preprocess, tuple(rest.pop("labels")), rest)


@dataclasses.dataclass(frozen=True)
class Loaded(Card):
    """A card with the model's parameters as numpy arrays on the host; meta has weights_hash too."""

    params: Params
