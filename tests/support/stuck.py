"""`trainer.main` of whose processes number 1 is stuck in Python at step 25, as by a lock that nobody gives back."""

import os
import runpy
import threading
from typing import Any

from trainer import step

_make = step.make_train_step


def _stuck(*arguments: Any) -> Any:
    taken, compiled = 0, _make(*arguments)

    def one(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 25 and os.environ["VITFORGE_PROCESS_ID"] == "1":
            threading.Event().wait()
        return compiled(*given)

    return one


if __name__ == "__main__":
    step.make_train_step = _stuck
    runpy.run_module("trainer.main", run_name="__main__", alter_sys=True)
