"""What a function of images says of a data set: read as evaluation reads them, a batch at a time, all batches of one size."""

from collections.abc import Callable

import numpy as np

from serving import preprocess
from serving.command import progress
from serving.preprocess import PreprocessSpec
from trainer.data.pipeline import fitted
from trainer.data.source import Array, ImageSource, require_channels


def read_images(
    run: Callable[[Array], Array],
    source: ImageSource,
    spec: PreprocessSpec,
    batch: int,
    label: str,
    places: Array | None = None,
) -> Array:
    """`run` (normalised images (batch, H, W, C) → (batch, …)) of the images at `places`, all for None: (N, …).

    The last batch is filled up with images of its own, so that one compiled shape does.

    Raises:
      UserError: for pictures in colour, where grey ones are taken.
    """
    require_channels(source, spec.channels, "the data set")
    images, chosen, answers = fitted(source, spec), np.arange(len(source)) if places is None else places, []
    with progress(len(chosen), label) as bar:
        for start in range(0, len(chosen), batch):
            rows = chosen[start : start + batch]
            pixels = np.stack([images.image(int(row)) for row in np.resize(rows, batch)])
            answers.append(run(preprocess.normalise(pixels, spec))[: len(rows)])
            bar.advance(len(rows))
    return np.concatenate(answers)
