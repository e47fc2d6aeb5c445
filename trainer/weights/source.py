"""Where weights come from: a local path or any URL that fsspec knows, with the digest of what came."""

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from serving.command import UserError

_CHUNK_BYTES = 2**22


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that is here now; `shown` is how messages call it, `sha256` the digest of its bytes."""

    path: Path
    shown: str
    sha256: str


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec."""
    return "://" in path


def check_digest_form(sha256: str) -> None:
    """Refuses what cannot be a SHA-256 in hexadecimal.

    Raises:
      UserError: showing it.
    """
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"sha256 {sha256!r} is no SHA-256; give its 64 hexadecimal digits")


@contextlib.contextmanager
def fetched(path: str, sha256: str = "") -> Iterator[Source]:
    """The file at `path`, here and with the digest that is asked for; a copy of a remote one is removed at the end.

    Raises:
      UserError: when it cannot be read, or is not the file that `sha256` is of.
    """
    with contextlib.ExitStack() as stack:
        local = Path(path)
        if is_url(path):
            local = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "weights"
        with _reading(path), _opened(path) as file:
            digest = _copied(file, local if is_url(path) else None)
        if sha256 and digest != sha256.lower():
            raise UserError(
                f"{path} has the SHA-256 {digest}, asked for is {sha256.lower()}; fetch it again, or put the digest right"
            )
        yield Source(local, path, digest)


def json_beside(path: str, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` in the folder of `path`; empty where there is none.

    Raises:
      UserError: when it is there and cannot be read.
    """
    beside = path.rpartition("/")[0] + "/" + name if is_url(path) else str(Path(path).parent / name)
    try:
        with _reading(beside), _opened(beside) as file:
            value = json.loads(file.read())
    except _Absent:
        return {}
    except ValueError as error:
        raise UserError(f"{beside} is no JSON: {error}; put it right or remove it") from error
    return value if isinstance(value, dict) else {}


class _Absent(UserError):
    """There is no such file."""


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise _Absent(
            f"{path} does not exist; give a file of weights, or a checkpoint or bundle folder"
        ) from error
    except ImportError as error:  # the driver of this kind of URL
        raise UserError(f"{path} needs a package that is not installed: {error}") from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise
        raise UserError(
            f"{path} cannot be opened: {error}; give a path or a URL that fsspec knows"
        ) from error
    except Exception as error:  # every file system of fsspec raises its own kinds
        if (
            isinstance(error, OSError) and error.errno == 28
        ):  # the disk is full, which has an exit code of its own
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} cannot be read: {reason}; try again, or copy it here first") from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    with fsspec.open(path, "rb") if is_url(path) else Path(path).open("rb") as file:
        yield file


def _copied(file: BinaryIO, target: Path | None) -> str:
    """The digest of `file`, which is copied to `target` on the way where there is one."""
    digest = hashlib.sha256()
    with target.open("wb") if target else contextlib.nullcontext() as copy:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if copy:
                copy.write(chunk)
    return digest.hexdigest()
