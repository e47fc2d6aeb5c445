"""What all processes of a job must see alike, compared before any work is done."""

import hashlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from serving.command import UserError
from trainer.distributed.jobs import named


def require_same(what: str, seen: str, remedy: str) -> None:
    """Compares what each process has `seen`; every process calls this.

    Raises:
      UserError: on every process, naming those that see something else than process 0.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(seen.encode()).digest(), np.uint32)
    all_seen = np.asarray(multihost_utils.process_allgather(digest)).reshape(jax.process_count(), -1)
    others = [index for index, one in enumerate(all_seen) if not np.array_equal(one, all_seen[0])]
    if others:
        sees = "sees" if len(others) == 1 else "see"
        raise UserError(f"{named(others)} of {len(all_seen)} {sees} {what} that process 0 does not; {remedy}")
