"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images"): 32×32 colour pixels.

The binary version: records of one label byte (CIFAR-100: the coarse label's, then the fine one's) and 3,072 bytes of red, green
and blue planes. The published 50,000 training images give 45,000 for training and 5,000 for validation.
"""

import dataclasses
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from serving.command import UserError
from trainer.data.source import Array, Dataset, ImageSource, assemble, split_off

_SIDE, _CHANNELS = 32, 3
_PIXELS = _SIDE * _SIDE * _CHANNELS


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One of the two: what its archive and folder are called, and what is in them."""

    name: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: int  # label bytes of a record, of which the last one counts


_CIFAR10 = _Kind(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    labels=1,
)
_CIFAR100 = _Kind(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    labels=2,
)


def load_cifar10(data_dir: str, skip: bool = False) -> Dataset:
    """CIFAR-10 from `data_dir`; see `_load`."""
    return _load(_CIFAR10, data_dir, skip)


def load_cifar100(data_dir: str, skip: bool = False) -> Dataset:
    """CIFAR-100 with its 100 fine classes from `data_dir`; see `_load`."""
    return _load(_CIFAR100, data_dir, skip)


def _load(kind: _Kind, data_dir: str, skip: bool) -> Dataset:
    """From the published archive in `data_dir`, the folder that it unpacks to, or that folder itself.

    Raises:
      UserError: naming the file that is missing or damaged.
    """
    wanted = (*kind.train, kind.test, kind.names)
    files = _contents(kind, Path(data_dir).expanduser(), wanted)
    names = tuple(line for line in files[kind.names].decode().splitlines() if line.strip())
    parts = [_records(kind, name, files[name]) for name in (*kind.train, kind.test)]
    images, labels = (np.concatenate([part[place] for part in parts[:-1]]) for place in (0, 1))
    # A tenth is 5,000 of the published 50,000; archives cut down for a trial keep the proportion.
    train, validation = split_off(images, labels, (len(labels) // 10,), seed=0)
    return assemble(kind.name, (train, validation, ImageSource(*parts[-1])), names, skip)


def _contents(kind: _Kind, data_dir: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the `wanted` files, by name."""
    archive = data_dir / kind.archive
    if archive.is_file():
        return _unpacked(archive, wanted)
    for folder in (data_dir / kind.folder, data_dir):
        if (folder / kind.test).is_file():
            missing = [name for name in wanted if not (folder / name).is_file()]
            if missing:
                raise UserError(
                    f"{folder} lacks {', '.join(missing)} of {kind.name}; unpack {kind.archive} again"
                )
            return {name: (folder / name).read_bytes() for name in wanted}
    raise UserError(
        f"there is neither {archive} nor {data_dir / kind.folder}; fetch the binary version of {kind.name} from its page "
        "(www.cs.toronto.edu/~kriz/cifar.html) and give its folder with --config.data_dir"
    )


def _unpacked(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if name in wanted else None
                if content is not None:
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} is truncated or no archive ({error}): fetch it again") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{archive} lacks {', '.join(missing)}: fetch it again")
    return found


def _records(kind: _Kind, name: str, content: bytes) -> tuple[Array, Array]:
    """Images uint8 (N, 32, 32, 3) and labels int32 (N,)."""
    size = kind.labels + _PIXELS
    if not content or len(content) % size:
        raise UserError(
            f"{name} of {kind.name} has {len(content)} bytes, which is no number of records of {size}: fetch it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    planes = rows[:, kind.labels :].reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, kind.labels - 1].astype(np.int32)
