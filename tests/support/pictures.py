"""Pictures for data sets: parts of scikit-learn's sample photographs, and archives in the published formats."""

import importlib.util
import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]
CLASSES = ("china", "flower")


@cache
def photograph(name: str) -> Image.Image:
    """One of the two, 640×427 pixels; found without importing scikit-learn, which takes a second."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    return Image.open(Path(found.origin).parent / f"datasets/images/{name}.jpg").convert("RGB")


def crop(name: str, number: int, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Part `number` of a photograph, (width, height) of `size`."""
    picture, rng = photograph(name), np.random.default_rng(number)
    left, top = (int(rng.integers(whole - part)) for whole, part in zip(picture.size, size, strict=True))
    return picture.crop((left, top, left + size[0], top + size[1]))


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    """The picture as a JPEG file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def write_folder(folder: Path, each: int = 10) -> Path:
    """A sub-folder for each photograph with so many parts of it, of differing sizes."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture = crop(name, number, (48 + number, 36 + 2 * number))
            (folder / name / f"{number:03d}.jpg").write_bytes(jpeg(picture))
    return folder


def cifar_records(count: int, label_bytes: int, classes: int, seed: int) -> tuple[bytes, Array, Array]:
    """(the content of a .bin file, its images (N, 32, 32, 3), its labels)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = (np.arange(count) % classes).astype(np.uint8)
    heads = np.repeat(labels[:, None], label_bytes, axis=1)
    heads[:, : label_bytes - 1] = 99  # coarse labels count for nothing
    rows = np.concatenate([heads, images.transpose(0, 3, 1, 2).reshape(count, -1)], axis=1)
    return rows.tobytes(), images, labels


def write_cifar10(data_dir: Path, each: int = 20, test: int = 20) -> Path:
    """The archive cifar-10-binary.tar.gz with so many examples in each of its five files and in the test's."""
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files = {f"data_batch_{number}.bin": cifar_records(each, 1, 10, number)[0] for number in range(1, 6)} | {
        "test_batch.bin": cifar_records(test, 1, 10, 9)[0],
        "batches.meta.txt": "".join(f"{name}\n" for name in names).encode() + b"\n",
    }
    write_archive(data_dir / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    return data_dir


def write_archive(path: Path, folder: str, files: dict[str, bytes]) -> None:
    """A compressed tar file of `files` in `folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
