"""A profile of some steps, as TensorBoard's profile plugin and Perfetto show it, under WORKDIR/profile."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from trainer.config import Experiment


class Profiler:
    """Use as a context around the loop: a profile under way ends with it."""

    def __init__(self, experiment: Experiment, workdir: Path) -> None:
        self._steps, self._folder, self._on = experiment.profiled, str(workdir / "profile"), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def at(self, number: int) -> Iterator[None]:
        """Around step `number`."""
        if number in self._steps and not self._on:
            jax.profiler.start_trace(self._folder)
            self._on = True
        elif self._on and number not in self._steps:
            self._stop()
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
