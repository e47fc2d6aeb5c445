"""The image tower of a LiT pair as something that can be cut: a ViT with a head, beside a text tower that stays as it is.

A tower says embeddings, and the search wants to know how far predictions move. So it looks at a stand-in: the same tower with a
head that compares embeddings with those of as many calibration images as an embedding has values, at the pair's temperature. It
has the tower's shape and costs. Embeddings of different length count as they are: the mean length stands for all of them.
What is cut, repaired and saved is the tower itself; its head is fitted to the teacher's embeddings.

Shapes: B images, D width, E embedding.
"""

import dataclasses

import numpy as np

from trainer.compress import streams
from trainer.compress.moments import Array
from trainer.description import TwoTowers, ViT
from trainer.models.build import Params


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair whose image tower is cut."""

    model: TwoTowers
    params: Params

    @staticmethod
    def tower_of(model: TwoTowers) -> ViT:
        """The shape of what is cut of a pair."""
        return dataclasses.replace(model.image, num_classes=model.image.num_outputs)

    def tower(self) -> tuple[ViT, Params]:
        """The image tower with a head; one without gets the identity, so that its stream may become narrower than embeddings."""
        image, own = self.model.image, self.params["image"]
        if image.num_classes:
            return image, own
        identity = {
            "kernel": np.eye(image.width, dtype=np.float32),
            "bias": np.zeros(image.width, np.float32),
        }
        return self.tower_of(self.model), {**own, "head": identity}

    def having(self, image: ViT, params: Params) -> tuple[TwoTowers, Params]:
        """The pair with another image tower."""
        return dataclasses.replace(self.model, image=image), {**self.params, "image": params}

    def stand_in(self, tower: ViT, params: Params, images: Array, batch: int) -> Params:
        """Parameters of a model of `tower`'s shape whose E classes are calibration `images` (images, H, W, C)."""
        said = streams.logits(tower, params, images[: tower.num_classes], batch)
        lengths = np.linalg.norm(said, axis=1, keepdims=True)
        # Fewer images than values: some are compared with more than once.
        anchors = np.resize(said / lengths, (tower.num_classes, tower.num_classes))
        sharpness = float(np.exp(np.asarray(self.params["t"]).ravel()[0])) / float(lengths.mean())
        head = {name: np.asarray(value) @ anchors.T * sharpness for name, value in params["head"].items()}
        return {**params, "head": {name: value.astype(np.float32) for name, value in head.items()}}
