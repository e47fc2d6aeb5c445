"""CIFAR in its published binary format."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from serving.command import UserError
from tests.support import pictures
from trainer.data.datasets import open_dataset


def test_the_archive_and_what_it_unpacks_to_are_the_same_data(tmp_path: Path) -> None:
    pictures.write_cifar10(tmp_path)
    packed = open_dataset("cifar10", str(tmp_path))
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    for folder in (tmp_path / "there", tmp_path / "there/cifar-10-batches-bin"):
        assert open_dataset("cifar10", str(folder)).fingerprint == packed.fingerprint
    assert (len(packed.train), len(packed.validation), len(packed.test)) == (90, 10, 20)
    assert packed.class_names[3] == "cat"
    assert len(packed.class_names) == 10
    assert sorted(packed.validation.labels) == list(range(10))


def test_pixels_and_labels_are_those_of_the_records(tmp_path: Path) -> None:
    pictures.write_cifar10(tmp_path)
    _, images, labels = pictures.cifar_records(20, 1, 10, 9)
    test = open_dataset("cifar10", str(tmp_path)).test
    assert np.array_equal(np.asarray(test.images), images)
    assert np.array_equal(test.labels, labels)


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    content, images, labels = pictures.cifar_records(200, 2, 100, 0)
    files = {
        "train.bin": content,
        "test.bin": content,
        "fine_label_names.txt": b"".join(b"c%d\n" % i for i in range(100)),
    }
    pictures.write_archive(tmp_path / "cifar-100-binary.tar.gz", "cifar-100-binary", files)
    data = open_dataset("cifar100", str(tmp_path))
    assert np.array_equal(data.test.labels, labels)
    assert np.array_equal(np.asarray(data.test.images), images)
    assert data.class_names[99] == "c99"


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        open_dataset("cifar10", str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    assert "there is neither" in _refusal(tmp_path)
    pictures.write_cifar10(tmp_path)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "is truncated or no archive" in _refusal(tmp_path)
    archive.write_bytes(whole)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    archive.unlink()
    folder = tmp_path / "cifar-10-batches-bin"
    damaged = folder / "data_batch_3.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "data_batch_3.bin of cifar10 has 61459 bytes, which is no number of records of 3073" in _refusal(
        tmp_path
    )
    damaged.unlink()
    assert "lacks data_batch_3.bin of cifar10" in _refusal(tmp_path)
    pictures.write_archive(archive, "cifar-10-batches-bin", {"test_batch.bin": b""})
    assert "lacks data_batch_1.bin, data_batch_2.bin" in _refusal(tmp_path)
