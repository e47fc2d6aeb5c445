"""Encoded pictures to model input, in threads, with a bound on how many are under way.

Decoding a photograph costs about as much as a small model's forward pass, so it must not hold up the event loop, nor pile up.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serving import preprocess
from serving.errors import InvalidInput, Overloaded


class Decoder:
    """Prepares pictures with `threads` threads; more than `max_images` at a time are refused."""

    def __init__(self, threads: int, max_images: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._max_images = max_images
        self._under_way = 0

    async def prepare(self, encoded: Sequence[bytes], spec: preprocess.PreprocessSpec) -> np.ndarray:
        """The model's input (B, H, W, C), float32, for `encoded` pictures.

        Raises:
          InvalidInput: naming the first picture that cannot be decoded or is too large, and why.
          Overloaded: too many pictures are being decoded already.
        """
        if self._under_way + len(encoded) > self._max_images:
            raise Overloaded(
                f"{self._under_way} images are being decoded, {len(encoded)} more were sent, "
                f"and the limit is {self._max_images}: try again later"
            )
        loop = asyncio.get_running_loop()
        self._under_way += len(encoded)
        jobs = [loop.run_in_executor(self._pool, _prepared, picture, spec) for picture in encoded]
        try:
            return np.stack([await _named(job, index) for index, job in enumerate(jobs)])
        finally:
            self._under_way -= len(encoded)
            for job in jobs:
                if not job.cancel() and not job.cancelled():
                    job.exception()  # read, so that a second bad picture is not reported as forgotten

    def close(self) -> None:
        """Ends the threads once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _prepared(picture: bytes, spec: preprocess.PreprocessSpec) -> np.ndarray:
    return preprocess.normalise(preprocess.fit(preprocess.decode(picture, spec), spec), spec)


async def _named(job: "asyncio.Future[np.ndarray]", index: int) -> np.ndarray:
    try:
        return await job
    except preprocess.ImageError as error:
        raise InvalidInput(f"images[{index}]: {error}") from error
