"""Decoding pictures off the event loop: what comes back, which picture is named, and how many may be under way."""

import asyncio
import threading

import numpy as np
import pytest

from serving import preprocess
from serving.errors import InvalidInput, Overloaded
from serving.service.decoding import Decoder
from tests.support import bundles


def test_pictures_come_back_in_order_as_preprocessing_alone_would_make_them() -> None:
    pictures = [bundles.png(10 + seed, 20, seed) for seed in range(9)]
    decoder = Decoder(threads=4, max_images=9)
    prepared = asyncio.run(decoder.prepare(pictures, bundles.SPEC))
    decoder.close()
    assert prepared.dtype == np.float32
    assert np.array_equal(prepared, preprocess.prepare(pictures, bundles.SPEC))


def test_the_first_bad_picture_is_named_whichever_fails_first() -> None:
    decoder = Decoder(threads=4, max_images=9)
    pictures = [bundles.png(600, 600), bundles.png()[:60], b"none"]
    with pytest.raises(InvalidInput, match=r"^images\[1\]: "):
        asyncio.run(decoder.prepare(pictures, bundles.SPEC))
    decoder.close()


def test_more_pictures_than_may_be_under_way_are_refused_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end = threading.Event()
    decode = preprocess.decode

    def held_decode(encoded: bytes, spec: preprocess.PreprocessSpec) -> np.ndarray:
        assert may_end.wait(30)
        return decode(encoded, spec)

    monkeypatch.setattr(preprocess, "decode", held_decode)

    async def scenario() -> None:
        decoder = Decoder(threads=1, max_images=3)
        pictures = [bundles.png()] * 2
        first = asyncio.create_task(decoder.prepare(pictures, bundles.SPEC))
        await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match="2 images are being decoded, 2 more were sent, and the limit is 3"
        ):
            await decoder.prepare(pictures, bundles.SPEC)
        may_end.set()
        assert len(await first) == 2
        assert len(await decoder.prepare(pictures, bundles.SPEC)) == 2
        decoder.close()

    asyncio.run(scenario())
