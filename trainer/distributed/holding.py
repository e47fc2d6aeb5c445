"""One process holds a folder for its whole job, and all of them know at once when it may not."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from serving.command import UserError
from trainer.distributed.jobs import named
from trainer.workdir import hold


@contextlib.contextmanager
def hold_for_all(folder: Path, doing: str) -> Iterator[None]:
    """`trainer.workdir.hold` by process 0, which tells the others whether it may: a refused one leaves none waiting for it.

    Raises:
      UserError: on every process, when another job holds the folder; process 0 names which.
    """
    with contextlib.ExitStack() as held:
        refusal: Exception | None = None
        if jax.process_index() == 0:
            try:
                held.enter_context(hold(folder, doing))
            except Exception as error:  # raised below, once the others know
                refusal = error
        if multihost_utils.broadcast_one_to_all(np.bool_(refusal is not None)):
            raise refusal or UserError(f"process 0 was refused {folder}; see what it said")
        _require_shared(folder)
        yield


def _require_shared(folder: Path) -> None:
    """Refuses a folder that is another one on another host: process 0 writes there, and all look."""
    if jax.process_count() == 1:
        return
    token = np.frombuffer(os.urandom(8), np.uint32) if jax.process_index() == 0 else np.zeros(2, np.uint32)
    mark = folder / f".shared-{multihost_utils.broadcast_one_to_all(token).tobytes().hex()}"
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # then it does not see the mark either
            mark.touch()
    multihost_utils.sync_global_devices("a mark in the workdir")
    seen = np.asarray(multihost_utils.process_allgather(np.bool_(_is_there(mark))))
    if jax.process_index() == 0:
        mark.unlink(missing_ok=True)
    blind = np.flatnonzero(~seen.reshape(-1)).tolist()
    if blind:
        raise UserError(
            f"{folder} of process 0 is not that of {named(blind)}; give a folder that all hosts share"
        )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
