"""What counts as a tiny picture, and what its sender cannot pass off as one."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serving.service.tiny import is_tiny
from tests.support import bundles

PNG = bundles.png(28, 28)
BEHIND_HEADER = 33  # signature and IHDR


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(*chunks: bytes) -> bytes:
    return PNG[:BEHIND_HEADER] + b"".join(chunks) + PNG[BEHIND_HEADER:]


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


MEGABYTE = zlib.compress(bytes(1 << 20))
TINY = {
    "one pixel": bundles.png(1, 1),
    "grey": PNG,
    "colour": bundles.png(64, 64, color=True),
    "plain chunks": with_chunks(chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"tEXt", b"Title\0digit")),
    "broken off": PNG[:200],
}


@pytest.mark.parametrize("name", TINY)
def test_small_plain_pngs_are_tiny(name: str) -> None:
    assert is_tiny(TINY[name], bundles.SPEC)


NOT_TINY = {
    "empty": b"",
    "text": b"no picture" * 9,
    "cut header": PNG[:20],
    "JPEG": saved("JPEG"),
    "GIF": saved("GIF"),
    "tall": bundles.png(65, 8),
    "wide": bundles.png(8, 65),
    "many bytes": with_chunks(chunk(b"tEXt", b"k\0" + bytes(16 << 10))),
    "packed text": with_chunks(chunk(b"zTXt", b"k\0\0" + MEGABYTE)),
    "packed international text": with_chunks(chunk(b"iTXt", b"k\0\1\0\0\0" + MEGABYTE)),
    "packed profile": with_chunks(chunk(b"iCCP", b"k\0\0" + MEGABYTE)),
    "packed text behind the end": PNG + chunk(b"zTXt", b"k\0\0" + MEGABYTE),
    "EXIF": with_chunks(chunk(b"eXIf", b"MM\0*")),
    "second header": with_chunks(chunk(b"IHDR", struct.pack(">IIBBBBB", 7000, 7000, 8, 0, 0, 0, 0))),
    "many chunks": with_chunks(*[chunk(b"tEXt", b"k\0v")] * 20),
}


@pytest.mark.parametrize("name", NOT_TINY)
def test_anything_else_is_not(name: str) -> None:
    assert not is_tiny(NOT_TINY[name], bundles.SPEC)


@pytest.mark.parametrize("changes", [{"resize": "crop"}, {"height": 65}, {"width": 224}])
def test_what_is_blown_up_is_not_tiny(changes: dict[str, object]) -> None:
    assert not is_tiny(PNG, dataclasses.replace(bundles.SPEC, **changes))  # type: ignore[arg-type]
