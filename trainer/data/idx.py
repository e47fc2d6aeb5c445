"""The IDX files of the MNIST family, plain or gzip-compressed.

Format: big-endian; two zero bytes, the element type (8: unsigned byte), the number of dimensions, the dimensions as 32-bit
integers, the data (Y. LeCun, "The MNIST database").
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from serving.command import UserError
from trainer.data.source import Array, ImageSource

_UNSIGNED_BYTE = 8


def read_pair(folder: Path, part: str, remedy: str) -> ImageSource:
    """Images (N, H, W, 1) and labels (N,) of `part` ("train" or "t10k") in `folder`.

    Raises:
      UserError: naming the file that is missing (with `remedy`), truncated or of another kind, or files of unequal length.
    """
    image_file = _find(folder, f"{part}-images-idx3-ubyte", remedy)
    label_file = _find(folder, f"{part}-labels-idx1-ubyte", remedy)
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        counts = f"{image_file} holds {len(images)} images, but {label_file} holds {len(labels)} labels"
        raise UserError(f"{counts}; they are not of the same data set: fetch both again")
    return ImageSource(images[..., None], labels.astype(np.int32))


def _find(folder: Path, name: str, remedy: str) -> Path:
    tried = [folder / name, folder / f"{name}.gz"]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"there is neither {tried[0]} nor {tried[1]}; {remedy}")


def read_idx(path: Path, dimensions: int) -> Array:
    """The uint8 array in an IDX file that must have so many dimensions, none of them 0.

    Raises:
      UserError: when the file is truncated, too long, empty, or no such file.
    """
    data = _content(path)
    header, magic = 4 + 4 * dimensions, bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if not data.startswith(magic):
        begins = f"{path} begins with {data[:4].hex() or 'nothing'}"
        raise UserError(
            f"{begins}, an IDX file of {dimensions} dimensions with {magic.hex()}: fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header]) if len(data) >= header else ()
    promised = header + math.prod(shape)
    if not shape or len(data) != promised:
        raise UserError(
            f"{path} has {len(data)} bytes where {promised} are due; it is damaged: fetch it again"
        )
    if 0 in shape:
        raise UserError(f"{path} is empty: its dimensions are {' x '.join(map(str, shape))}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        what = "is truncated or no gzip file" if path.suffix == ".gz" else "cannot be read"
        raise UserError(f"{path} {what} ({error}): fetch it again") from error
