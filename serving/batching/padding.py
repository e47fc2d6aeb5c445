"""The arithmetic of a batch: which size it is padded to, and how rows are gathered into it and cut out of it again.

Pure numpy, run in the batcher's threads, so that copying pixels never holds up the event loop.
"""

from collections.abc import Sequence

import numpy as np


def buckets_within(max_batch_size: int, buckets: Sequence[int]) -> list[int]:
    """The sizes, ascending, that batches of at most `max_batch_size` rows are padded to: every one of `buckets` that fits, and
    `max_batch_size` itself, or the largest batches would be padded beyond it. Empty without buckets: then nothing is padded.
    """
    fitting = {bucket for bucket in buckets if bucket <= max_batch_size}
    return sorted({*fitting, max_batch_size}) if buckets else []


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """The smallest of `buckets` that holds `rows` rows, or `rows` itself where none does."""
    return min((bucket for bucket in buckets if bucket >= rows), default=rows)


def gather(parts: Sequence[np.ndarray], bucket: int) -> np.ndarray:
    """One batch (bucket, …) of the rows of `parts` in order, followed by rows of zeros.

    A single part that fills the bucket is returned as it is, without a copy.

    Raises:
      ValueError: when the parts' rows differ in shape or type.
    """
    first = parts[0]
    if len(parts) == 1 and len(first) == bucket:
        return first
    for part in parts:
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
            raise ValueError(
                f"rows of shape {part.shape[1:]} and type {part.dtype} cannot share a batch with rows "
                f"of shape {first.shape[1:]} and type {first.dtype}"
            )
    batch = np.zeros((bucket, *first.shape[1:]), first.dtype)
    np.concatenate(parts, out=batch[: sum(map(len, parts))])
    return batch


def scatter(outputs: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """`outputs` (bucket, …) cut into consecutive pieces of `sizes` rows; what is left over was padding and is dropped."""
    ends = np.cumsum(sizes)
    return [outputs[end - size : end] for end, size in zip(ends, sizes, strict=True)]
