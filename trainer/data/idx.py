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


def read_pair(folder: Path, part: str) -> ImageSource:
    """Images (N, H, W, 1) and labels of `part` ("train" or "t10k") in `folder`.

    Raises:
      UserError: naming the file that is missing, truncated or of another kind, or files of unequal length.
    """
    image_file, label_file = (_find(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise UserError(f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels; fetch both again")
    return ImageSource(images[..., None], labels.astype(np.int32))


def _find(folder: Path, name: str) -> Path:
    tried = [folder / name, folder / f"{name}.gz"]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise UserError(
            f"no {tried[0]} and no {tried[1].name} beside it; install Debian's package dataset-fashion-mnist, "
            "or give the folder of the IDX files as data_dir"
        )
    return found


def read_idx(path: Path, dimensions: int) -> Array:
    """The uint8 array in an IDX file that must have so many dimensions.

    Raises:
      UserError: when the file is truncated, too long, or no such file.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); it is truncated or no gzip file: fetch it again") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if len(data) < header or data[:4] != magic:
        raise UserError(f"{path} begins with {data[:4].hex() or 'nothing'}, an IDX file of {dimensions} dimensions with {magic.hex()}")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) != header + math.prod(shape):
        raise UserError(f"{path} has {len(data)} bytes, its header promises {header + math.prod(shape)}: fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
