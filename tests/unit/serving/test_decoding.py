"""Decoding pictures: what comes back, which picture is named, how many may be under way, and what is done off the event loop."""

import asyncio
import threading

import numpy as np
import pytest

from serving import preprocess
from serving.errors import InvalidInput, Overloaded
from serving.service.decoding import Decoder
from tests.support import bundles


def test_pictures_come_back_in_order_as_preprocessing_alone_would_make_them() -> None:
    pictures = [bundles.png(10 + 20 * seed, 20, seed) for seed in range(9)]  # some tiny, some not
    decoder = Decoder(threads=4, max_images=9)
    prepared = asyncio.run(decoder.prepare(pictures, bundles.SPEC))
    decoder.close()
    assert prepared.dtype == np.float32
    assert np.array_equal(prepared, preprocess.prepare(pictures, bundles.SPEC))


def test_the_first_bad_picture_is_named_whichever_fails_first() -> None:
    decoder = Decoder(threads=4, max_images=9)
    for bad in (bundles.png()[:60], bundles.png(80, 80)[:600]):
        with pytest.raises(InvalidInput, match=r"^images\[1\]: "):
            asyncio.run(decoder.prepare([bundles.png(600, 600), bad, b"none"], bundles.SPEC))
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
        pictures = [bundles.png(80, 80)] * 2
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


def threads_that_decode(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which pictures are decoded from now on, in order."""
    names: list[str] = []
    decode = preprocess.decode

    def noted_decode(encoded: bytes, spec: preprocess.PreprocessSpec) -> np.ndarray:
        names.append(threading.current_thread().name)
        return decode(encoded, spec)

    monkeypatch.setattr(preprocess, "decode", noted_decode)
    return names


def test_only_tiny_pictures_are_decoded_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    names = threads_that_decode(monkeypatch)
    decoder = Decoder(threads=1, max_images=9)
    asyncio.run(decoder.prepare([bundles.png()] * 3, bundles.SPEC))
    assert set(names) == {threading.current_thread().name}
    names.clear()
    asyncio.run(decoder.prepare([bundles.png(80, 80)], bundles.SPEC))
    assert [name.partition("_")[0] for name in names] == ["decode"]
    decoder.close()


def test_others_get_their_turn_while_many_tiny_pictures_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    names = threads_that_decode(monkeypatch)

    async def scenario() -> int:
        decoder = Decoder(threads=1, max_images=100)
        many = asyncio.create_task(decoder.prepare([bundles.png()] * 100, bundles.SPEC))
        await asyncio.sleep(0)
        done = len(names)
        await many
        decoder.close()
        return done

    assert asyncio.run(scenario()) < 10
