"""Data sets that TensorFlow Datasets prepared (tests/golden/tfds, by tools.dev.tfds_golden), read without TensorFlow."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from serving.command import UserError
from trainer.data import tfds
from trainer.data.bad_images import Sound
from trainer.data.source import Dataset

PREPARED = str(Path(__file__).parents[2] / "golden/tfds")


def load(cache: Path, name: str = "tiny_digits", data_dir: str = PREPARED) -> Dataset:
    return tfds.load(name, data_dir, Sound("fatal", cache / "bad_images"))


def test_it_holds_what_was_prepared(tmp_path: Path) -> None:
    data = load(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [54, 6, 20]
    assert data.class_names == tuple("0123456789")
    digits = load_digits()
    # The library shuffles what it prepares: an image says which digit it is.
    known = {np.uint8(image * 15).tobytes(): label for image, label in zip(digits.images, digits.target)}
    seen = set()
    for split in (data.train, data.validation, data.test):
        for place in range(len(split)):
            pixels = split.images[place][..., 0].tobytes()
            assert known[pixels] == split.labels[place]
            seen.add(pixels)
    assert len(seen) == 80
    assert "tensorflow" not in sys.modules


def test_it_goes_to_worker_processes_and_labels_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(tmp_path)
    there = pickle.loads(pickle.dumps(data.train))
    np.testing.assert_array_equal(there.images[4], data.train.images[4])
    monkeypatch.setattr(tfds, "progress", lambda *_: pytest.fail("read all again"))
    assert load(tmp_path).fingerprint == data.fingerprint


def test_what_is_not_prepared_is_refused_with_the_command_that_does_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tfds:tiny_dogs cannot be opened .*tfds build tiny_dogs --file_format"
    ):
        load(tmp_path, "tiny_dogs")
    with pytest.raises(UserError, match="tfds build mnist --file_format=array_record"):
        load(tmp_path, "mnist", str(tmp_path))


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs TensorFlow Datasets: pip install 'vitforge\[tfds\]'"):
        load(tmp_path)
