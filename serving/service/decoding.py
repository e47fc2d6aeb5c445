"""Encoded pictures to model input, with a bound on how many are under way: in threads, except for tiny ones.

Decoding a photograph costs about as much as a small model's forward pass, so it must not hold up the event loop, nor pile up.
Handing a tiny picture to a thread and its rows back costs about as much as decoding it, so that is decoded on the event loop.
Measured in turn with threads alone, 16 callers, PNGs of 8 to 28 pixels a side, a small model, two cores beside other work, medians
of two runs (14 and 20 rounds): at one image a request 1.44 and 1.24 times the images/s with 0.71 and 0.77 of the server's CPU time
an image, at 16 images 1.21 and 1.13 times with 0.89 and 0.90. Single rounds spread widely (0.4 to 4.4 times): the machine was busy.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serving import preprocess
from serving.errors import InvalidInput, Overloaded
from serving.service.tiny import is_tiny


class Decoder:
    """Prepares pictures, all but tiny ones with `threads` threads; more than `max_images` at a time are refused."""

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
        jobs = {
            index: loop.run_in_executor(self._pool, _prepared, picture, spec)
            for index, picture in enumerate(encoded)
            if not is_tiny(picture, spec)
        }
        try:
            return np.stack(
                [
                    await _named(jobs.get(index) or _prepared_here(picture, spec, index), index)
                    for index, picture in enumerate(encoded)
                ]
            )
        finally:
            self._under_way -= len(encoded)
            for job in jobs.values():
                if not job.cancel() and not job.cancelled():
                    job.exception()  # read, so that a second bad picture is not reported as forgotten

    def close(self) -> None:
        """Ends the threads once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)


_AT_A_STRETCH = 8  # then other calls get their turn


async def _prepared_here(picture: bytes, spec: preprocess.PreprocessSpec, index: int) -> np.ndarray:
    if index % _AT_A_STRETCH == _AT_A_STRETCH - 1:
        await asyncio.sleep(0)
    return _prepared(picture, spec)


def _prepared(picture: bytes, spec: preprocess.PreprocessSpec) -> np.ndarray:
    return preprocess.normalise(preprocess.fit(preprocess.decode(picture, spec), spec), spec)


async def _named(job: Awaitable[np.ndarray], index: int) -> np.ndarray:
    try:
        return await job
    except preprocess.ImageError as error:
        raise InvalidInput(f"images[{index}]: {error}") from error
