"""Images that stay encoded, as files or as records, until they are read: data sets larger than memory.

JPEG is decoded by libjpeg-turbo straight into an array; everything else, and JPEG that must be turned upright, by Pillow.
"""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import simplejpeg

from serving import preprocess
from serving.command import UserError
from serving.preprocess import ImageError, PreprocessSpec
from trainer.data.source import Array

_COLOUR = PreprocessSpec("RGB", 1, 1, (0.0,) * 3, (1.0,) * 3)
_EXIF = b"Exif\0\0"
_HEAD = 64 * 1024  # bytes at the front of a JPEG that EXIF lies in


class Reader(Protocol):
    """Encoded images that are read at random; picklable, for worker processes."""

    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes:
        """The image at `index` as it is stored."""
        ...

    def name(self, index: int) -> str:
        """Where it comes from, for messages."""
        ...

    def fingerprint(self) -> bytes:
        """What tells these images from others, without reading them all."""
        ...


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """The images of `reader`, decoded one at a time into colours, uint8 (H, W, 3)."""

    reader: Reader

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Array:
        try:
            return decoded(self.reader.read(index))
        except (ImageError, OSError) as error:
            raise UserError(
                f"{self.reader.name(index)}: {error}; mend or remove it, or leave such images out with bad_images=skip"
            ) from error


def decoded(content: bytes) -> Array:
    """uint8 (H, W, 3), upright.

    Raises:
      ImageError: when the bytes are no image that can be decoded.
    """
    if simplejpeg.is_jpeg(content) and _EXIF not in content[:_HEAD]:
        try:
            return np.asarray(simplejpeg.decode_jpeg(content, "RGB"))
        except ValueError:
            pass  # damaged, or of colours that only Pillow converts: it says which
    return preprocess.decode(content, _COLOUR)
