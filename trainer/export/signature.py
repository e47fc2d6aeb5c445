"""What goes into an exported graph and what comes out: names, datatypes, shapes.

One rule for the names: what is read gives the input's name (`images`, `tokens`); the output is `logits` when the graph ends in a
classifier, else `embeddings` (towers, texts, models without a head).
"""

import dataclasses

from trainer.description import Classifier, Model, TextTower, TwoTowers

IMAGES, TOKENS = "images", "tokens"
LOGITS, EMBEDDINGS = "logits", "embeddings"
MODEL, IMAGE_TOWER, TEXT_TOWER = "model", "image", "text"  # names of a description's graphs
Single = Classifier | TextTower  # what is exported as one graph


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor as the manifest lists it; -1 is the batch."""

    name: str
    datatype: str  # as in the Open Inference Protocol: FP32, INT32
    shape: tuple[int, ...]
    values_below: int = 0  # integers go from 0 to this - 1


@dataclasses.dataclass(frozen=True)
class Signature:
    """The one input and the one output of a graph."""

    input: Tensor
    output: Tensor


def signature(model: Single, tower: bool = False) -> Signature:
    """The signature of `model`'s graph; a `tower` of a pair gives embeddings, whatever it gives alone."""
    if isinstance(model, TextTower):
        asked, classes = Tensor(TOKENS, "INT32", (-1, model.max_tokens), model.vocab_size), 0
    else:
        asked = Tensor(IMAGES, "FP32", (-1, *model.image_size, model.channels))
        classes = 0 if tower else model.num_classes
    return Signature(asked, Tensor(LOGITS if classes else EMBEDDINGS, "FP32", (-1, model.num_outputs)))


def signatures(model: Model) -> dict[str, Signature]:
    """The signatures of all graphs of `model` by the graph's name: `model`, or `image` and `text` of a pair."""
    if isinstance(model, TwoTowers):
        return {
            IMAGE_TOWER: signature(model.image, tower=True),
            TEXT_TOWER: signature(model.text, tower=True),
        }
    return {MODEL: signature(model)}
