"""Evaluation and serving see the same picture: the trainer's pipeline and the server's, byte for byte, on real images."""

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import preprocess
from serving.preprocess import PreprocessSpec
from trainer.data import mnist
from trainer.data.datasets import open_dataset
from trainer.data.pipeline import eval_batches, fitted
from trainer.data.source import Dataset, ImageSource
from trainer.parts import preprocessing

INSTALLED = mnist._DEBIAN_FOLDER


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def evaluated(source: ImageSource, spec: PreprocessSpec) -> np.ndarray:
    sized = fitted(source, spec)
    return preprocess.normalise(np.stack([sized.image(index) for index in range(len(sized))]), spec)


def served(source: ImageSource, spec: PreprocessSpec) -> np.ndarray:
    return preprocess.prepare([png(image) for image in source.images], spec)


def first(split: ImageSource, count: int) -> ImageSource:
    return ImageSource(split.images[:count], split.labels[:count])


def assert_same_bytes(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one, other, strict=True)
    assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset("digits")


@pytest.mark.parametrize("image_size", [8, 16, 28])
def test_fifty_digits_are_the_same_bytes_in_evaluation_and_serving(digits: Dataset, image_size: int) -> None:
    source, spec = first(digits.test, 50), preprocessing(digits, image_size)
    tensors = served(source, spec)
    assert tensors.shape == (50, image_size, image_size, 1)
    assert tensors.dtype == np.float32
    assert_same_bytes(evaluated(source, spec), tensors)


def test_the_batches_of_evaluation_hold_the_same_bytes(digits: Dataset) -> None:
    source, spec = first(digits.test, 50), preprocessing(digits, 16)
    batches = list(eval_batches(source, spec, batch=16, process_index=0, process_count=1))
    images = np.concatenate([batch["image"][batch["mask"] == 1] for batch in batches])
    assert_same_bytes(preprocess.normalise(images, spec), served(source, spec))


SPECS: dict[str, Callable[[int], PreprocessSpec]] = {
    "squash bicubic": lambda side: PreprocessSpec("L", side, side, (33.3,), (78.6,), method="bicubic"),
    "crop lanczos": lambda side: PreprocessSpec("L", side, side, (127.5,), (127.5,), "crop", "lanczos"),
    "part of the middle": lambda side: PreprocessSpec(
        "L", side, side, (127.5,), (127.5,), "crop", "bilinear", crop_fraction=0.875
    ),
    "nearest": lambda side: PreprocessSpec(
        "L", side, side, (0.0,), (255.0,), method="nearest", antialias=False
    ),
}


@pytest.mark.parametrize("side", [5, 8, 17])
@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_spec_is_read_alike(digits: Dataset, name: str, side: int) -> None:
    source, spec = first(digits.test, 10), SPECS[name](side)
    assert_same_bytes(evaluated(source, spec), served(source, spec))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Fashion-MNIST where it is installed, else made-up files of its form."""
    if (INSTALLED / "t10k-images-idx3-ubyte.gz").is_file():
        return open_dataset("fashion_mnist")
    folder, rng = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    for part, count in (("train", 120), ("t10k", 60)):
        write_idx(
            folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        )
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", rng.integers(0, 10, count, dtype=np.uint8))
    return open_dataset("fashion_mnist", str(folder))


@pytest.mark.parametrize("image_size", [28, 32])
def test_clothes_are_the_same_bytes_in_evaluation_and_serving(clothes: Dataset, image_size: int) -> None:
    source, spec = first(clothes.test, 50), preprocessing(clothes, image_size)
    assert_same_bytes(evaluated(source, spec), served(source, spec))


def test_the_comparison_sees_another_method(digits: Dataset) -> None:
    source = first(digits.test, 10)
    one, other = SPECS["squash bicubic"](17), PreprocessSpec("L", 17, 17, (33.3,), (78.6,))
    assert evaluated(source, one).tobytes() != served(source, other).tobytes()
