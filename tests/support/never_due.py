"""`trainer.main` whose loop stands still as soon as it was asked to stop, for tests of who is asked twice."""

import runpy
import signal

from trainer.preemption import Preemption


def _due(self: Preemption) -> bool:
    while self._heard is not None:
        signal.pause()
    return False


if __name__ == "__main__":
    Preemption.due = _due  # type: ignore[method-assign]
    runpy.run_module("trainer.main", run_name="__main__", alter_sys=True)
