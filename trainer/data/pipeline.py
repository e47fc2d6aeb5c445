"""The Grain pipeline: source → shuffle → repeat → augment → this process's share → batch.

The position in the data is one number, the global index of the next example: epoch index // N, batches cross epochs. An
example's augmentation derives from (seed, global index), and comes before the cut by process, so that any number of processes
sees the same examples at every step, and a run resumes at its exact next batch on another number of them. Where views repeat
(`view_epochs`) it derives from (seed, example, epoch) instead, so that another run meets the same views.
Images are fitted to the model's size before they are augmented, or cropped from their own, and stay uint8; normalisation happens
on the device.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.augment import Augment, RepeatedAugment, crops
from trainer.data.source import Array, ImageSource

HostBatch = dict[str, Array]
_SIZED_AT_ONCE_BYTES = (
    2**29
)  # half a GiB of pixels a split; ImageNet-sized pictures of more are sized as they are read


@dataclasses.dataclass(frozen=True)
class Whole:
    """The examples of `source` with every image as it is, in the channels that `spec` asks for. A Grain random-access source."""

    source: ImageSource
    spec: PreprocessSpec

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.source[index], "image": self.image(index)}

    def image(self, index: int) -> Array:
        """uint8 (H, W, C) of its own size."""
        return preprocess.in_color(self.source.images[index], self.spec)


class Fitted:
    """The examples of `source` with every image sized as serving will size it. A Grain random-access source.

    A split that is small enough is sized once, a larger one image by image as it is read.
    """

    def __init__(self, source: ImageSource, spec: PreprocessSpec) -> None:
        self._source, self._spec = source, spec
        held = isinstance(source.images, np.ndarray)  # files stay where they are until they are read
        small = held and len(source) * spec.height * spec.width * spec.channels <= _SIZED_AT_ONCE_BYTES
        self._ready = np.stack([preprocess.fit(image, spec) for image in source.images]) if small else None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._source[index], "image": self.image(index)}

    def image(self, index: int) -> Array:
        """uint8 (H, W, C) of the model's size."""
        if self._ready is not None:
            return np.asarray(self._ready[index])
        return preprocess.fit(self._source.images[index], self._spec)


def seen_by(aug: str, source: ImageSource, spec: PreprocessSpec) -> Whole | Fitted:
    """The examples of `source` as the policy `aug` takes them."""
    return Whole(source, spec) if crops(aug) else fitted(source, spec)


@functools.lru_cache(maxsize=4)
def fitted(source: ImageSource, spec: PreprocessSpec) -> Fitted:
    """`source` sized for `spec`, once for all who ask."""
    return Fitted(source, spec)


def train_batches(
    source: ImageSource,
    spec: PreprocessSpec,
    *,
    seed: int,
    aug: str,
    randaug: str = "",
    batch: int,
    start_step: int,
    process_index: int,
    process_count: int,
    workers: int,
    view_epochs: int = 0,
) -> Iterator[HostBatch]:
    """Endless batches from step `start_step` on, this process's share b = batch / process_count of each.

    Yields image uint8 (b, H, W, C), label int32 (b,) and index int64 (b,), the examples' places in `source`. With `view_epochs`
    augmentation repeats after so many epochs, and epoch int64 (b,), below it, says which of its views each example shows. Reading
    ahead ends when the iterator is closed or collected.

    Raises:
      UserError: when the processes cannot share `batch` equally.
    """
    share = _share("batch", batch, process_count)
    examples = _in_order(grain.MapDataset.source(seen_by(aug, source, spec)), seed)
    augment = Augment(aug, (spec.height, spec.width), randaug)
    if view_epochs:
        # Grain's random_map seeds by the global position, in which no view ever comes again.
        views = examples.map_with_index(RepeatedAugment(augment, seed, view_epochs, len(source)))
    else:
        views = examples.random_map(augment)
    mine = views[process_index::process_count].batch(share, drop_remainder=True)
    # One thread keeps ahead of the device; more would fight over the interpreter. Workers are ahead by themselves.
    reading = grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=4)
    stream: Any = mine[start_step:].to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads settings from absl's global flags, which our commands leave alone
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return _closing(stream)


def examples_at(positions: Sequence[int], examples: int, seed: int) -> list[int]:
    """The places, among so many training examples, of those at `positions` of the run's one order."""
    order = _in_order(grain.MapDataset.range(examples), seed)
    return [int(order[position]) for position in positions]


def _in_order(examples: Any, seed: int) -> Any:
    """Epoch after epoch of `examples`, each in an order of its own."""
    return examples.seed(seed).shuffle().repeat()


def _closing(stream: Any) -> Iterator[HostBatch]:
    batches = iter(stream)
    try:
        yield from batches
    finally:
        # A prefetch thread left open can keep a failing process from ending.
        batches.close()


def eval_batches(
    source: ImageSource, spec: PreprocessSpec, *, batch: int, process_index: int, process_count: int
) -> Iterator[HostBatch]:
    """Every example of `source` once over all processes, as equally many and equally shaped batches for each.

    Yields image and label as `train_batches`, and mask float32 (b,): 1 for an example, 0 for the padding at the end.

    Raises:
      UserError: when the processes cannot share `batch` equally.
    """
    share, whole = _share("batch_eval", batch, process_count), fitted(source, spec)
    for number in range(math.ceil(len(whole) / batch)):
        start = number * batch + process_index * share
        wanted = np.arange(start, start + share)
        real = wanted < len(whole)
        rows = np.where(real, wanted, 0)
        images = np.stack([whole.image(row) for row in rows])
        yield {"image": images, "label": source.labels[rows], "mask": real.astype(np.float32)}


def _share(name: str, batch: int, process_count: int) -> int:
    if batch % process_count:
        lower = batch // process_count * process_count
        fits = f"{lower} or {lower + process_count}" if lower else f"{process_count}"
        raise UserError(
            f"{name}={batch} cannot be shared by {process_count} processes; use a multiple, such as {fits}"
        )
    return batch // process_count
