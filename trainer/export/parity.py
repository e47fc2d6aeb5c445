"""Does the exported file say what the live model says? Asked through the very runtime that will serve it, on real images."""

import dataclasses
import math

import numpy as np

from serving.command import UserError, progress
from serving.runtime.base import Runtime
from trainer.description import TwoTowers
from trainer.export.graph import Array
from trainer.export.live import Answer, live_model, live_tower
from trainer.export.signature import Signature, Single, signature, signatures
from trainer.models.build import Params

BATCHES = (1, 3, 8)  # a batch that was baked in by a reshape shows at one of them
_LIVE_BATCH = 64
# float32 sums in another order: about 1e-6 of the largest logit for the depths we know; a wrong graph is off by far more.
_RELATIVE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Parity:
    """max |difference| of logits, the share of images with the same first label, and the largest logit of the live model.

    Of embeddings the same, value by value; there the first label is the place of the largest value.
    """

    max_abs_difference: float
    top1_agreement: float
    largest_logit: float
    images: int

    @property
    def tolerance(self) -> float:
        """The difference that rounding alone can make in float32."""
        return _RELATIVE_TOLERANCE * max(1.0, self.largest_logit)


@dataclasses.dataclass(frozen=True)
class Reference:
    """`inputs` and what the live model `answers` to them: what every file of that model is held against."""

    names: Signature
    inputs: Array
    answers: Array

    def first(self, count: int) -> "Reference":
        """The same of the first `count` inputs."""
        return Reference(self.names, self.inputs[:count], self.answers[:count])

    def compare(self, runtime: Runtime) -> Parity:
        """The live answers against those of `runtime` at batch 1, 3, 8 and the rest by 8."""
        exported = _exported(runtime, self.names, self.inputs)
        return Parity(
            max_abs_difference=float(np.max(np.abs(self.answers - exported))),
            top1_agreement=float(np.mean(self.answers.argmax(axis=-1) == exported.argmax(axis=-1))),
            largest_logit=float(np.max(np.abs(self.answers))),
            images=len(self.inputs),
        )

    def missed(self, runtime: Runtime) -> float:
        """Mean squared difference between the live answers and those of `runtime`, all inputs in one batch."""
        return float(np.mean(np.square(self.answers - _answers(runtime, self.names, self.inputs))))


def reference(model: Single, params: Params, inputs: Array) -> Reference:
    """The live model's logits of normalised images (N, H, W, C), or its embeddings of tokens (N, T)."""
    return Reference(signature(model), inputs, _live(live_model(model, params), inputs))


def tower_reference(model: TwoTowers, params: Params, tower: str, inputs: Array) -> Reference:
    """The same for one tower of a pair, `image` or `text`, and its normalised embeddings."""
    return Reference(signatures(model)[tower], inputs, _live(live_tower(model, params, tower), inputs))


def _live(answer: Answer, inputs: Array) -> Array:
    size, answers = _even(len(inputs), _LIVE_BATCH), []
    starts = range(0, len(inputs), size)
    with progress(len(starts), "live model") as bar:
        for start in starts:
            answers.append(answer(inputs[start : start + size]))
            bar.advance()
    return np.concatenate(answers)


def _exported(runtime: Runtime, names: Signature, inputs: Array) -> Array:
    slices, answers = _slices(len(inputs)), []
    with progress(len(slices), "exported file") as bar:
        for rows in slices:
            answers.append(_answers(runtime, names, inputs[rows]))
            bar.advance()
    return np.concatenate(answers)


def _even(count: int, most: int) -> int:
    """The batch size of at most `most` that cuts `count` most evenly: a much shorter last batch would be compiled as well."""
    return math.ceil(count / math.ceil(count / most))


def _answers(runtime: Runtime, names: Signature, inputs: Array) -> Array:
    try:
        return runtime.run({names.input.name: inputs})[names.output.name]
    except Exception as error:  # each runtime raises kinds of its own for a graph that cannot take this batch
        reason = " ".join(str(error).split())
        raise UserError(
            f"the exported model cannot take a batch of {len(inputs)}: {reason}; nothing was written: "
            "this is a defect of the exporter, please report it"
        ) from error


def _slices(count: int) -> list[slice]:
    sizes = [*BATCHES]
    while sum(sizes) < count:
        sizes.append(max(BATCHES))
    ends = np.cumsum(sizes)
    return [
        slice(end - size, min(end, count))
        for size, end in zip(sizes, ends, strict=True)
        if end - size < count
    ]


def require_equal(parity: Parity) -> None:
    """Refuses a float32 file that does not say the same.

    Raises:
      UserError: with both figures.
    """
    if not parity.max_abs_difference <= parity.tolerance:
        raise UserError(
            f"the exported model differs from the live one by {parity.max_abs_difference:.3g} in its logits "
            f"on {parity.images} images, allowed is {parity.tolerance:.3g}; "
            "nothing was written: this is a defect of the exporter, please report it"
        )
