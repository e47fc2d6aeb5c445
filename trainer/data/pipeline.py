"""The Grain pipeline: source → shuffle → repeat → augment → this process's share → batch.

The position in the data is one number, the global index of the next example: epoch index // N, batches cross epochs. An
example's augmentation derives from (seed, global index), and comes before the cut by process, so that any number of processes
sees the same examples at every step, and a run resumes at its exact next batch on another number of them.
Images are fitted to the model's size beforehand and stay uint8; normalisation happens on the device.
"""

import math
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.augment import Augment
from trainer.data.source import Array, ImageSource

HostBatch = dict[str, Array]


def fitted(source: ImageSource, spec: PreprocessSpec) -> ImageSource:
    """`source` with every image resized as serving will resize it, once for all epochs."""
    if source.images.shape[1:3] == (spec.height, spec.width):
        return source
    return ImageSource(np.stack([preprocess.fit(image, spec) for image in source.images]), source.labels)


def train_batches(
    source: ImageSource,
    spec: PreprocessSpec,
    *,
    seed: int,
    aug: str,
    batch: int,
    start_step: int,
    process_index: int,
    process_count: int,
    workers: int,
) -> Iterator[HostBatch]:
    """Endless batches from step `start_step` on: image uint8 (B / processes, H, W, C), label int32 (B / processes,).

    Raises:
      UserError: when the processes cannot share `batch` equally.
    """
    if batch % process_count:
        raise UserError(f"batch={batch} cannot be shared by {process_count} processes; use a multiple of {process_count}")
    share = batch // process_count
    examples = grain.MapDataset.source(fitted(source, spec)).seed(seed).shuffle().repeat().random_map(Augment(aug))
    mine = examples[process_index::process_count].batch(share, drop_remainder=True)
    stream: Any = mine[start_step:].to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=4))
    if workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    yield from stream


def eval_batches(
    source: ImageSource, spec: PreprocessSpec, *, batch: int, process_index: int, process_count: int
) -> Iterator[HostBatch]:
    """Every example of `source` once over all processes, as equally many and equally shaped batches for each.

    Adds mask float32: 1 for an example, 0 for the padding at the end.

    Raises:
      UserError: when the processes cannot share `batch` equally.
    """
    if batch % process_count:
        raise UserError(f"batch_eval={batch} cannot be shared by {process_count} processes; use a multiple of {process_count}")
    whole, share = fitted(source, spec), batch // process_count
    for number in range(math.ceil(len(whole) / batch)):
        start = number * batch + process_index * share
        wanted = np.arange(start, start + share)
        real = wanted < len(whole)
        rows = np.where(real, wanted, 0)
        yield {"image": whole.images[rows], "label": whole.labels[rows], "mask": real.astype(np.float32)}
