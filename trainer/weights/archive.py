"""Files of arrays, opened one array at a time: npz and safetensors.

Opening reads names, shapes and types; an array is read when it is asked for, and is in memory once. A damaged file is an error
before or while it is read, never an array of zeros: the parts of an npz carry checksums, and safetensors checks its sizes.
"""

import contextlib
import dataclasses
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from serving.command import UserError
from trainer.weights.forms import Array, Shape

_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, OSError, NotImplementedError)
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of an array before it is read; `dtype` is numpy's name, or "bfloat16"."""

    shape: Shape
    dtype: str


class Archive(Protocol):
    """A file of named arrays; `source` is how messages call it."""

    source: str
    kind: str  # npz or safetensors
    headers: dict[str, Header]

    def read(self, name: str) -> Array:
        """One array as it is stored."""
        ...


def floats(archive: Archive, name: str) -> Array:
    """One array as float32.

    Raises:
      UserError: when the file is damaged there, or the array holds no floats, or values that are not finite.
    """
    dtype = archive.headers[name].dtype
    if dtype not in _FLOATS:
        raise UserError(
            f"{archive.source}: array {name} is {dtype}, weights are {', '.join(_FLOATS)}; give a file of weights"
        )
    array = np.asarray(archive.read(name), np.float32)
    # The sum is finite when every value is (of this size), and takes no second array of the file's size.
    if not np.isfinite(array.sum(dtype=np.float64)):
        raise UserError(
            f"{archive.source}: array {name} holds values that are not finite; a model of them answers nonsense: give another file"
        )
    return array


@contextlib.contextmanager
def open_archive(path: Path, source: str) -> Iterator[Archive]:
    """The archive at `path`, told by its first bytes and not by its name.

    Raises:
      UserError: when it is neither an npz nor a safetensors file, or damaged.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        with contextlib.ExitStack() as stack:
            with _damage_of(source, "npz"):
                archive = _Npz(stack.enter_context(zipfile.ZipFile(path)), source)
            yield archive
    elif len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**32:
        yield _open_safetensors(path, source)
    else:
        raise UserError(
            f"{source} is no npz and no safetensors file (it begins with {start[:4]!r}); give one of these, "
            "or a checkpoint or bundle folder"
        )


@contextlib.contextmanager
def _damage_of(source: str, kind: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is a damaged {kind}: {reason}; fetch it again") from error


class _Npz:
    """numpy's zip of .npy members, compressed or not."""

    kind = "npz"

    def __init__(self, members: zipfile.ZipFile, source: str) -> None:
        self.source, self._members = source, members
        if any(name.endswith("data.pkl") for name in members.namelist()):
            raise UserError(
                f"{source} is a PyTorch file, which can run code when it is read; save its state_dict as safetensors"
            )
        names = [name.removesuffix(".npy") for name in members.namelist()]
        self.headers = {name: self._header(name) for name in names}

    def _header(self, name: str) -> Header:
        with self._open(name) as file:
            shape, dtype = _npy_header(file)
        if dtype.hasobject:
            raise UserError(
                f"{self.source}: array {name} holds pickled objects, which can run code; give a file of plain arrays"
            )
        # numpy saves bfloat16 as two bytes of nothing.
        return Header(shape, "bfloat16" if dtype == np.dtype("V2") else dtype.name)

    def _open(self, name: str) -> Any:
        try:
            return self._members.open(f"{name}.npy")
        except KeyError:
            return self._members.open(name)

    def read(self, name: str) -> Array:
        """One array as it is stored, bfloat16 where it is."""
        with _damage_of(self.source, "npz"), self._open(name) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # also makes the zip compare its checksum
                raise ValueError(f"array {name} is longer than its header says")
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _npy_header(file: Any) -> tuple[Shape, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


_SAFETENSORS_TYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


class _Safetensors:
    """A safetensors file through the library of that name."""

    kind = "safetensors"

    def __init__(self, opened: Any, source: str) -> None:
        self.source, self._opened = source, opened
        names = list(opened.keys())
        slices = {name: opened.get_slice(name) for name in names}
        self.headers = {
            name: Header(
                tuple(one.get_shape()), _SAFETENSORS_TYPES.get(one.get_dtype(), str(one.get_dtype()))
            )
            for name, one in slices.items()
        }

    def read(self, name: str) -> Array:
        """One array as it is stored."""
        return self._opened.get_tensor(name)


def _open_safetensors(path: Path, source: str) -> Archive:
    from safetensors import SafetensorError, safe_open

    try:
        return _Safetensors(safe_open(path, framework="numpy"), source)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is a damaged safetensors file: {reason}; fetch it again") from error
