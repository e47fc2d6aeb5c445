"""What a file in fewer bits must keep to be shipped: the live model's first labels, and the accuracy that was asked for."""

import dataclasses
from collections.abc import Callable

from serving.runtime.base import Runtime
from trainer.export.parity import Parity


@dataclasses.dataclass(frozen=True)
class Gate:
    """At least `min_agreement` of the live model's first labels, and a validation top-1 of `min_top1` (both fractions).

    `top1` measures the latter of a file; where `min_top1` is 0 it is never asked.
    """

    min_agreement: float
    min_top1: float = 0.0
    top1: Callable[[Runtime], float] | None = None

    def why_refused(self, precision: str, found: Parity, runtime: Runtime) -> str:
        """What was found and what is asked; empty where the file holds."""
        if found.top1_agreement < self.min_agreement:
            return (
                f"{precision} gives the live model's first label on {found.top1_agreement:.1%} of {found.images} images, "
                f"asked is {self.min_agreement:.1%}"
            )
        if self.min_top1 > 0 and self.top1 is not None and (top1 := self.top1(runtime)) < self.min_top1:
            return f"{precision} has a validation top-1 of {top1:.2%}, and {self.min_top1:.2%} must remain"
        return ""
