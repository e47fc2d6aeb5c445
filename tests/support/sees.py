"""`trainer.main` that writes down which examples each process takes at each step, under VITFORGE_SEEN."""

import json
import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data import pipeline

_batches = pipeline.train_batches


def _written_down(*arguments: Any, start_step: int, process_index: int, **others: Any) -> Iterator[Any]:
    folder, process = Path(os.environ["VITFORGE_SEEN"]), os.environ.get("VITFORGE_PROCESS_ID", "0")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"process-{process}.pid").write_text(str(os.getpid()))
    batches = _batches(*arguments, start_step=start_step, process_index=process_index, **others)
    with (folder / f"process-{process}.jsonl").open("a") as file:
        for step, batch in enumerate(batches, start_step + 1):
            said = {"step": step, "share": process_index, "examples": batch["index"].tolist()}
            file.write(json.dumps(said) + "\n")
            file.flush()
            yield batch


if __name__ == "__main__":
    pipeline.train_batches = _written_down
    runpy.run_module("trainer.main", run_name="__main__", alter_sys=True)
