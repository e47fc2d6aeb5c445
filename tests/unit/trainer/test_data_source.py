"""The data sets: which examples, split how, and what is refused."""

import gzip
import hashlib
import importlib.machinery
import importlib.util
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.command import UserError
from trainer.data.datasets import open_dataset
from trainer.data.idx import read_idx
from trainer.data.source import Array, Dataset, ImageSource, assemble, require_channels, split_off

ROOT = Path(__file__).parents[3]
FILES = {
    "train-images-idx3-ubyte": (36, 4, 4),
    "train-labels-idx1-ubyte": (36,),
    "t10k-images-idx3-ubyte": (20, 4, 4),
    "t10k-labels-idx1-ubyte": (20,),
}


def _idx(values: Array) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def _content(name: str) -> Array:
    shape = FILES[name]
    if len(shape) == 1:
        return (np.arange(shape[0]) % 10).astype(np.uint8)
    return np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fashion-MNIST's four files, small ones: two plain, two compressed."""
    for index, name in enumerate(FILES):
        data = _idx(_content(name))
        (tmp_path / (name + ".gz" * (index % 2))).write_bytes(gzip.compress(data) if index % 2 else data)
    return tmp_path


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        open_dataset("fashion_mnist", str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset("digits")


def _splits(data: Dataset) -> tuple[ImageSource, ImageSource, ImageSource]:
    return data.train, data.validation, data.test


def test_the_digits_are_split_into_the_published_numbers(digits: Dataset) -> None:
    assert [len(split) for split in _splits(digits)] == [1257, 180, 360]
    assert {split.images.shape[1:] for split in _splits(digits)} == {(8, 8, 1)}
    assert {(split.images.dtype, split.labels.dtype) for split in _splits(digits)} == {
        (np.dtype(np.uint8), np.dtype(np.int32))
    }
    assert digits.class_names == tuple("0123456789")


def test_the_grey_of_the_digits_goes_from_black_to_white(digits: Dataset) -> None:
    values = np.unique(np.concatenate([split.images.ravel() for split in _splits(digits)]))
    assert values.tolist() == [round(step * 255 / 16) for step in range(17)]


def test_the_splits_of_the_digits_never_change(digits: Dataset) -> None:
    """A figure of one release is comparable with that of another only then; checkpoints hold this fingerprint."""
    assert digits.fingerprint == "aef5b3c579d9bf283ad728ef8fe3cfa348acc904f0efab7692a0ba942522ddce"
    test = hashlib.sha256(digits.test.images.tobytes()).hexdigest()
    assert test == "278359d39da2c8d9875ccd8193f26cf91decc26b910fea68270f193f2bebeb9f"


def test_the_digits_are_read_without_importing_the_library_they_ship_in() -> None:
    """Every command would wait a second for it."""
    script = "import sys; from trainer.data.digits import load; load(''); print('sklearn' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True) == "False\n"


@pytest.mark.parametrize(
    "found", [None, importlib.machinery.ModuleSpec("sklearn", None, origin="/no/init.py")]
)
def test_digits_that_are_not_there_are_refused_with_what_to_install(
    found: importlib.machinery.ModuleSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"the digits are not there \(.*\); install vitforge\[train\]"):
        open_dataset("digits")


def test_every_digit_is_in_one_split_only(digits: Dataset) -> None:
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    parts = _splits(digits)
    got = sorted(
        (image.tobytes(), int(label)) for split in parts for image, label in zip(split.images, split.labels)
    )
    whole = np.rint(pixels * (255 / 16)).astype(np.uint8)
    assert got == sorted((image.tobytes(), int(label)) for image, label in zip(whole, labels))


def test_each_split_holds_the_classes_in_the_proportion_of_the_whole(digits: Dataset) -> None:
    counts = np.array([np.bincount(split.labels, minlength=10) for split in _splits(digits)])
    due = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
    # Two ends of a stretch, each off by less than one example.
    assert np.abs(counts - due).max() < 2


def test_classes_of_very_different_sizes_are_split_in_proportion_too() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), (1000, 100, 10))
    rest, part = split_off(np.zeros((1110, 1, 1, 1), np.uint8), labels, (111,), seed=3)
    assert np.bincount(part.labels).tolist() == [100, 10, 1]
    assert np.bincount(rest.labels).tolist() == [900, 90, 9]


def test_the_digits_take_no_folder() -> None:
    with pytest.raises(UserError, match="data_dir='/tmp' is set, but the digits come with the installation"):
        open_dataset("digits", "/tmp")


def test_an_unknown_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match="unknown data set 'digit'; nearest is 'digits', all are digits, mnist, fashion_mnist"
    ):
        open_dataset("digit")


def test_a_source_can_be_sent_to_a_worker(digits: Dataset) -> None:
    again = pickle.loads(pickle.dumps(digits.validation))
    assert np.array_equal(again.images, digits.validation.images)
    assert again[3]["label"] == digits.validation.labels[3]
    assert again[3]["index"] == 3


def test_plain_and_compressed_idx_files_are_read(folder: Path) -> None:
    data = open_dataset("fashion_mnist", str(folder))
    assert [len(split) for split in _splits(data)] == [33, 3, 20]
    assert np.array_equal(data.test.images[..., 0], _content("t10k-images-idx3-ubyte"))
    assert np.array_equal(data.test.labels, _content("t10k-labels-idx1-ubyte"))
    assert data.class_names[9] == "Ankle boot"


def test_images_keep_their_labels_when_they_are_split(folder: Path) -> None:
    data = open_dataset("fashion_mnist", str(folder))
    images, labels = _content("train-images-idx3-ubyte"), _content("train-labels-idx1-ubyte")
    label_of = {image.tobytes(): label for image, label in zip(images, labels)}
    for split in (data.train, data.validation):
        assert [label_of[image.tobytes()] for image in split.images] == split.labels.tolist()


def test_the_fingerprint_tells_data_sets_apart(folder: Path) -> None:
    before = open_dataset("fashion_mnist", str(folder)).fingerprint
    images = _content("t10k-images-idx3-ubyte")
    images[7, 1, 2] ^= 1
    (folder / "t10k-images-idx3-ubyte").write_bytes(_idx(images))
    assert open_dataset("fashion_mnist", str(folder)).fingerprint != before


@pytest.mark.parametrize("index", range(len(FILES)))
def test_a_missing_idx_file_is_named_with_what_was_tried_and_what_to_do(folder: Path, index: int) -> None:
    name = list(FILES)[index]
    (folder / (name + ".gz" * (index % 2))).unlink()
    said = _refusal(folder)
    assert f"neither {folder / name} nor {folder / name}.gz" in said
    assert "apt-get install dataset-fashion-mnist" in said
    assert "--config.data_dir" in said


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere/train-images-idx3-ubyte") in _refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("kept", [0, 3, 6, 0.5, -1])
def test_a_truncated_idx_file_is_refused_by_name(folder: Path, name: str, kept: float) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else int(kept)])
    assert f"{folder / name} " in _refusal(folder)


def test_an_idx_file_with_bytes_too_many_is_refused_by_name(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"{path} has {16 + 36 * 16 + 1} bytes where {16 + 36 * 16} are due" in _refusal(folder)


def test_a_file_that_is_no_gzip_file_is_refused_by_name(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(b"<html>not found</html>")
    assert f"{path} is truncated or no gzip file" in _refusal(folder)


def test_damaged_compressed_bytes_are_refused_by_name(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert f"{path} " in _refusal(folder)


def test_labels_in_place_of_images_are_refused_by_name(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(_idx(_content("t10k-labels-idx1-ubyte")))
    assert f"{path} begins with 00000801, an IDX file of 3 dimensions with 00000803" in _refusal(folder)


def test_images_and_labels_of_unequal_number_are_refused_with_both(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(np.zeros(35, np.uint8))))
    assert f"holds 36 images, but {path} holds 35 labels" in _refusal(folder)


@pytest.mark.parametrize("shape", [(0, 4, 4), (36, 0, 4)])
def test_an_idx_file_without_pixels_is_refused_by_name(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "file").write_bytes(_idx(np.zeros(shape, np.uint8)))
    with pytest.raises(UserError, match=f"file is empty: its dimensions are {shape[0]} x {shape[1]} x 4"):
        read_idx(tmp_path / "file", 3)


def test_dimensions_that_promise_more_than_the_file_holds_cost_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3))
    with pytest.raises(UserError, match=f"has 16 bytes where {16 + (2**32 - 1) ** 3} are due"):
        read_idx(tmp_path / "file", 3)


def test_a_label_without_a_class_is_refused(folder: Path) -> None:
    labels = _content("t10k-labels-idx1-ubyte")
    labels[4] = 10
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    said = "of its test split have labels without a class: image 4 (label 10); labels go from 0 to 9; bad_images=skip"
    assert said in _refusal(folder)
    whole, kept = len(labels), open_dataset("fashion_mnist", str(folder), "skip").test
    assert (len(kept), kept.labels.max()) == (whole - 1, 9)


def test_too_few_images_for_a_split_are_refused() -> None:
    some, none = (ImageSource(np.zeros((n, 2, 2, 1), np.uint8), np.zeros(n, np.int32)) for n in (2, 0))
    with pytest.raises(UserError, match="tiny has no examples for its validation split"):
        assemble("tiny", (some, none, some), ("a",))


def test_pictures_in_colour_are_not_shown_to_a_model_of_grey_ones() -> None:
    colours = ImageSource(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32))
    grey = ImageSource(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32))
    for fits in ((colours, 3), (grey, 1), (grey, 3)):
        require_channels(*fits, "x")
    with pytest.raises(
        UserError, match="x has pictures of 3 channels, the model takes grey ones; use weights"
    ):
        require_channels(colours, 1, "x")
