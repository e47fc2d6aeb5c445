"""One process holds a folder for its whole job, and all of them know at once when it may not."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from serving.command import UserError
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
        yield
