"""`trainer.main` that says when it evaluates, and then goes on only when it was asked to stop."""

import runpy
import sys
from typing import Any

from trainer import train
from trainer.evaluation import evaluate


def _slowly(*arguments: Any) -> Any:
    *given, after_a_batch = arguments
    print("evaluating", file=sys.stderr, flush=True)

    def until_asked() -> None:
        while True:
            after_a_batch()

    return evaluate(*given, until_asked)


if __name__ == "__main__":
    train.evaluate = _slowly  # type: ignore[attr-defined]
    runpy.run_module("trainer.main", run_name="__main__", alter_sys=True)
