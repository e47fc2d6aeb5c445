"""How fast a run is and what its time goes to: images/s, MFU, waiting for input, goodput.

Goodput is the share of the time since the run began that went into steps. The rest is named: start, compile, input, evaluate, save.
MFU is that of Chowdhery et al. 2022, arXiv:2204.02311, appendix B: the operations that the model needs, never those that it
repeats, by what the devices could do in bfloat16.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import jax

from trainer import description
from trainer.description import Classifier, Model, TwoTowers

# Peak of a chip in bfloat16, FLOP/s, by the beginning of its kind's name (vendors' data sheets); others have no MFU.
PEAKS = {
    "TPU v3": 123e12 / 2,  # of a core: JAX counts two devices a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(kind: str) -> float | None:
    """Of one device of this kind, FLOP/s; None where it is not known."""
    found = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(found, key=len)] if found else None


def flops_per_image(student: Model, teacher: Classifier | None, locked: bool = False) -> float:
    """Forward and backward pass of the student (three times its forward pass), forward pass of a teacher that is asked.

    Of a `locked` image tower there is no backward pass.
    """
    asked = description.macs(teacher) if teacher else 0
    if locked and isinstance(student, TwoTowers):
        return 2.0 * (description.macs(student.image) + 3 * description.macs(student.text))
    return 2.0 * (3 * description.macs(student) + asked)


class Rates:
    """The clock of one run on this process, from its making on. `flops` are those of an image, 0 until they are known."""

    def __init__(self, batch: int) -> None:
        self.flops = 0.0
        self.spent_s: dict[str, float] = defaultdict(float)  # beside steps
        self._batch, self._began_s, self._steps = batch, time.monotonic(), 0
        self._lap = (
            0,
            0.0,
            0.0,
        )  # steps, seconds of steps and input, seconds of input, at the end of the last one

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Time inside counts as spent on `what`, and not on steps."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.spent_s[what] += time.monotonic() - began_s

    def step(self) -> None:
        """A step has ended on the devices that was not the first, which compiles."""
        self._steps += 1

    def lap(self) -> dict[str, float]:
        """Rates since the last lap, of steps and the input that they waited for, and the goodput of the run so far.

        Before a step has ended there is no rate to tell.
        """
        now = (self._steps, self._stepping_s, self.spent_s["input"])
        steps, stepping_s, input_s = (new - old for new, old in zip(now, self._lap, strict=True))
        if not steps:
            return {"goodput": self.goodput}
        self._lap = now
        images, devices = steps * self._batch / max(stepping_s, 1e-9), jax.device_count()
        peak = peak_flops(jax.devices()[0].device_kind)
        return {
            "images_per_s": images,
            "images_per_s_per_device": images / devices,
            "input_wait": input_s / max(stepping_s, 1e-9),
            "goodput": self.goodput,
            **({"mfu": images * self.flops / (peak * devices)} if peak else {}),
        }

    @property
    def images_per_s(self) -> float:
        """Of all steps."""
        return self._steps * self._batch / max(self._stepping_s, 1e-9)

    @property
    def goodput(self) -> float:
        """The share of the time so far that went into steps."""
        return 1 - sum(self.spent_s.values()) / max(self._elapsed_s, 1e-9)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def _stepping_s(self) -> float:
        """What went into steps and their input."""
        others = sum(seconds for what, seconds in self.spent_s.items() if what != "input")
        return self._elapsed_s - others
