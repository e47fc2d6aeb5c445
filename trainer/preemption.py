"""Hears SIGTERM and says, at a step boundary on which all processes agree, that it is time to save and go."""

import signal
import types

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Use as a context around the training loop; the handler that was there before returns at its end."""

    def __init__(self) -> None:
        self._heard = False
        self._before: object = None

    def __enter__(self) -> "Preemption":
        # In a job of several processes JAX's own service hears the signal and agrees on a step.
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def _hear(self, signum: int, frame: types.FrameType | None) -> None:
        self._heard = True

    def due(self, step: int) -> bool:
        """Whether this process, like all others, has to stop after `step` steps."""
        if jax.process_count() == 1:
            return self._heard
        return multihost_utils.reached_preemption_sync_point(step)
