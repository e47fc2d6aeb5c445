"""Writes the Fisher scores of a small model, cut over all devices of the job, as this process has them: DIR/PROCESS.npz."""

import sys
from pathlib import Path

import jax
import numpy as np

from tests.support.small_models import UNEVEN, random_params, smooth_images
from trainer.compress import scores
from trainer.distributed.bootstrap import join_job

IMAGES, BATCH = 90, 36  # neither the batch nor the last one is a multiple of eight devices


def found() -> dict[str, np.ndarray]:
    """The scores on whatever devices there are."""
    model = UNEVEN
    both = random_params(model), smooth_images(model, IMAGES)
    return scores.to_arrays(scores.score(model, *both, "fisher", 0, BATCH))


if __name__ == "__main__":
    join_job()
    np.savez(Path(sys.argv[1]) / f"{jax.process_index()}.npz", **found())
