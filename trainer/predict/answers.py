"""From logits and embeddings to what people read and programs keep."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.predict.arrays import Array

Answer = dict[str, Any]


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def top(names: Sequence[str], logits: Array, labels: Sequence[str], count: int) -> list[Answer]:
    """For each row of `logits` (B, classes) its `count` likeliest labels with probabilities; `names` says which input it was."""
    answers = []
    for name, row in zip(names, softmax(logits), strict=True):
        best = np.argsort(-row, kind="stable")[:count]
        found = [
            {
                "index": int(index),
                "label": labels[index] if labels else str(index),
                "probability": float(row[index]),
            }
            for index in best
        ]
        answers.append({"input": name, "top": found})
    return answers


def readable(answers: Sequence[Answer]) -> str:
    """One line an input."""
    return "\n".join(
        f"{answer['input']}: "
        + "; ".join(f"{one['label']} {one['probability']:.1%}" for one in answer["top"])
        for answer in answers
    )


def similarities(images: Array, texts: Array, scale: float) -> Array:
    """Logits (images, texts) of normalised embeddings (images, E) and (texts, E) at LiT's temperature (arXiv:2111.07991, §3)."""
    return scale * images.astype(np.float64) @ texts.astype(np.float64).T
