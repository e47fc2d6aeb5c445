"""What was skipped, and why: the record of steps that `trainer.guard` left out."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from serving.command import UserError
from trainer.data.pipeline import examples_at

_MOST_IN_A_ROW = 10  # steps without a finite loss, after which none will come


@dataclasses.dataclass
class Skips:
    """Says which examples a skipped step had, and ends a run that has left the finite numbers for good."""

    examples: int  # of the training split
    seed: int
    batch: int
    in_a_row: int = 0

    def entry(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Of a skipped step: loss and gradient norm as they were, and the places of its examples in the training split.

        Raises:
          UserError: when it is the last of many, one after another, whose loss or gradients were not finite.
        """
        finite = all(math.isfinite(values[name]) for name in ("loss", "grad_norm"))
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row == _MOST_IN_A_ROW:
            raise UserError(
                f"the last {self.in_a_row} steps, to step {step}, had no finite loss or gradients and were left out (metrics.jsonl "
                "names their examples); the newest checkpoint is finite: go on from it with a lower base_lr, more warmup_steps or "
                "dtype=float32, in another --workdir by --config.pretrained"
            )
        first = (step - 1) * self.batch
        places = examples_at(range(first, first + self.batch), self.examples, self.seed)
        said = {f"skipped_{name}": values[name] for name in ("loss", "grad_norm")}
        return {**said, "skipped_examples": places}

    def taken(self) -> None:
        """A step was taken."""
        self.in_a_row = 0
