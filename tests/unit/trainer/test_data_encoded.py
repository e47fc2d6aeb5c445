"""Data sets of image files: folders of them, and shards; what cannot be read."""

import dataclasses
import itertools
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from tests.support import pictures
from tools.convert import main as convert
from trainer.data import datasets, shard_writers, write_shards
from trainer.data.datasets import open_dataset
from trainer.data.encoded import EncodedImages, decoded
from trainer.data.folder import Files
from trainer.data.pipeline import HostBatch, eval_batches, train_batches
from trainer.data.source import Dataset, ImageSource

SPEC = PreprocessSpec("RGB", 16, 16, (127.5,) * 3, (127.5,) * 3, resize="crop", crop_fraction=0.875)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.write_folder(tmp_path / "photos")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets, "_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def names(source: ImageSource) -> list[str]:
    assert isinstance(source.images, EncodedImages)
    reader = source.images.reader
    return [reader.name(index) for index in range(len(reader))]


def splits(data: Dataset) -> list[ImageSource]:
    return [data.train, data.validation, data.test]


def test_a_folder_is_split_by_class_and_its_names_are_the_classes(folder: Path) -> None:
    data = open_dataset(f"folder:{folder}")
    assert data.class_names == pictures.CLASSES
    assert [len(split) for split in splits(data)] == [16, 2, 2]
    assert [sorted(split.labels.tolist()) for split in splits(data)] == [[0] * 8 + [1] * 8, [0, 1], [0, 1]]
    every = [name for split in splits(data) for name in names(split)]
    assert len(set(every)) == 20
    for split in splits(data):
        for name, label in zip(names(split), split.labels, strict=True):
            assert f"/{pictures.CLASSES[label]}/" in name


def test_splits_that_are_there_are_taken(tmp_path: Path) -> None:
    for split, each in (("train", 6), ("val", 2)):
        pictures.write_folder(tmp_path / split, each)
    data = open_dataset(f"folder:{tmp_path}")
    assert [len(split) for split in splits(data)] == [12, 4, 4]
    pictures.write_folder(tmp_path / "test", 3)
    assert len(open_dataset(f"folder:{tmp_path}").test) == 6
    (tmp_path / "val/dog").mkdir()
    with pytest.raises(UserError, match="val has the class 'dog', which train has not"):
        open_dataset(f"folder:{tmp_path}")


def test_a_moved_folder_is_the_same_data_and_a_changed_one_is_not(folder: Path, tmp_path: Path) -> None:
    first = open_dataset(f"folder:{folder}").fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_dataset(f"folder:{moved}").fingerprint == first
    (moved / "china/000.jpg").write_bytes(pictures.jpeg(pictures.crop("flower", 70)))
    assert open_dataset(f"folder:{moved}").fingerprint != first


@pytest.mark.parametrize("make", ["nothing", "empty", "one class", "no pictures"])
def test_a_folder_that_is_none_is_refused(make: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    if make != "nothing":
        folder.mkdir()
    if make in ("one class", "no pictures"):
        (folder / "a").mkdir()
    if make == "no pictures":
        (folder / "b").mkdir()
        (folder / "b/readme.txt").write_text("no picture")
    wanted = {
        "nothing": "there is no such folder",
        "empty": "has 0 sub-folders; it needs one for each class",
        "one class": "has 1 sub-folders",
        "no pictures": "holds no pictures in its sub-folders",
    }
    with pytest.raises(UserError, match=wanted[make]):
        open_dataset(f"folder:{folder}")


def test_files_are_decoded_as_pillow_does_and_upright(tmp_path: Path) -> None:
    picture = pictures.crop("flower", 0)
    plain = pictures.jpeg(picture)
    (tmp_path / "plain.jpg").write_bytes(plain)
    assert np.array_equal(decoded(plain), np.asarray(Image.open(tmp_path / "plain.jpg")))
    turned = Image.Exif()
    turned[0x0112] = 6  # shown after a quarter turn
    assert decoded(pictures.jpeg(picture, exif=turned)).shape == (48, 36, 3)
    grey = decoded(pictures.jpeg(picture.convert("L")))
    assert grey.shape == (36, 48, 3)
    assert decoded(pictures.jpeg(picture.convert("CMYK"))).shape == (36, 48, 3)


def batches(source: ImageSource, aug: str, workers: int = 0, start: int = 0, **share: int) -> list[HostBatch]:
    given = {"process_index": 0, "process_count": 1, **share}
    made = train_batches(source, SPEC, seed=1, aug=aug, batch=8, start_step=start, workers=workers, **given)
    return list(itertools.islice(made, 4))


@pytest.mark.parametrize("aug", ["none", "light", "strong"])
def test_training_and_evaluation_read_files(folder: Path, aug: str) -> None:
    data = open_dataset(f"folder:{folder}")
    first, again = (batches(data.train, aug) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one["image"].shape == (8, 16, 16, 3)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    seen = {
        index: image
        for batch in first[:2]
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True)
    }
    assert sorted(seen) == list(range(16))
    fitted = preprocess.fit(data.train.images[3], SPEC)
    assert np.array_equal(seen[3], fitted) == (aug == "none")
    (evaluated,) = eval_batches(data.validation, SPEC, batch=4, process_index=0, process_count=1)
    assert np.array_equal(evaluated["image"][0], preprocess.fit(data.validation.images[0], SPEC))


def test_crops_are_the_same_on_any_number_of_processes_and_from_any_step(folder: Path) -> None:
    source = open_dataset(f"folder:{folder}").train
    whole = batches(source, "medium")
    parts = [batches(source, "medium", process_index=index, process_count=2) for index in range(2)]
    for number, batch in enumerate(whole):
        joined = sorted(image.tobytes() for part in parts for image in part[number]["image"])
        assert joined == sorted(image.tobytes() for image in batch["image"])
    later = batches(source, "medium", start=2)
    assert np.array_equal(later[0]["image"], whole[2]["image"])


def damage(folder: Path) -> tuple[Path, Path]:
    """Two files of training that are no pictures any more."""
    data = open_dataset(f"folder:{folder}", bad_images="unchecked")
    cut, empty = (Path(name) for name in names(data.train)[3:5])
    cut.write_bytes(cut.read_bytes()[:300])
    empty.write_bytes(b"")
    return cut, empty


def test_a_bad_image_ends_the_run_with_its_name(folder: Path) -> None:
    cut, empty = damage(folder)
    with pytest.raises(UserError, match=r"2 of 16 images are bad: .*bad_images=skip") as refused:
        open_dataset(f"folder:{folder}")
    assert str(cut) in str(refused.value)
    assert str(empty) in str(refused.value)
    # Unchecked, it ends when it is met.
    with pytest.raises(UserError, match=r"(are|is) no image that can be decoded.*bad_images=skip") as met:
        batches(open_dataset(f"folder:{folder}", bad_images="unchecked").train, "light")
    assert str(met.value).startswith((str(cut), str(empty)))


def test_storage_that_fails_is_no_bad_image(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Files, index: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Files, "read", fails)
    with pytest.raises(UserError, match=r"cannot be read now .*Input/output error.* try again"):
        open_dataset(f"folder:{folder}", bad_images="skip")
    assert not cache.exists()


def test_hidden_folders_are_no_classes_and_empty_ones_are_refused(folder: Path) -> None:
    (folder / ".ipynb_checkpoints").mkdir()
    assert open_dataset(f"folder:{folder}").class_names == pictures.CLASSES
    (folder / "dogs").mkdir()
    with pytest.raises(UserError, match=r"dogs holds no pictures .* put some there, or remove it"):
        open_dataset(f"folder:{folder}")


def test_bad_images_are_counted_named_and_left_out(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = damage(folder)
    with caplog.at_level(logging.WARNING):
        data = open_dataset(f"folder:{folder}", bad_images="skip")
    assert len(data.train) == len(data.train.labels) == 14
    assert not {str(path) for path in bad} & set(names(data.train))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 of 16 images are left out: ")
    assert all(str(path) in line for path in bad)
    assert len(batches(data.train, "light")) == 4
    for name, label in zip(names(data.train), data.train.labels, strict=True):
        assert f"/{pictures.CLASSES[label]}/" in name
    assert data.fingerprint != open_dataset(f"folder:{folder}", bad_images="unchecked").fingerprint

    # What was found is kept: nothing is decoded again.
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(Files, "read", lambda *_: pytest.fail("looked again"))
    assert open_dataset(f"folder:{folder}", bad_images="skip").fingerprint == data.fingerprint


def test_shards_hold_what_the_folder_holds(folder: Path, tmp_path: Path) -> None:
    result = convert([f"--dataset=folder:{folder}", f"--output={tmp_path / 'shards'}", "--shards=3"])
    assert result["train"] == {"examples": 16, "files": 3}
    assert result["validation"] == {"examples": 2, "files": 2}
    ours, theirs = (
        open_dataset(f"array_record:{tmp_path}/shards/*.array_record"),
        open_dataset(f"folder:{folder}"),
    )
    assert ours.class_names == theirs.class_names
    for one, other in zip(splits(ours), splits(theirs), strict=True):
        assert np.array_equal(one.labels, other.labels)
        for index in range(len(one)):
            assert np.array_equal(one.images[index], other.images[index])
    for one, other in zip(batches(ours.train, "light"), batches(theirs.train, "light"), strict=True):
        assert np.array_equal(one["image"], other["image"])


def test_who_writes_the_shards_makes_no_difference(folder: Path, tmp_path: Path) -> None:
    asked = [f"--dataset=folder:{folder}", "--shards=3"]
    convert([*asked, f"--output={tmp_path / 'here'}"])
    convert([*asked, f"--output={tmp_path / 'processes'}", "--workers=2"])
    assert contents(tmp_path / "processes") == contents(tmp_path / "here")


@pytest.mark.slow
def test_a_runner_of_beam_writes_the_same_shards(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "apache_beam", reason="pip install apache-beam, which is not among the locked versions"
    )
    asked = [f"--dataset=folder:{folder}", "--shards=3"]
    convert([*asked, f"--output={tmp_path / 'here'}"])
    convert([*asked, f"--output={tmp_path / 'beam'}", "--beam=--runner=DirectRunner --direct_num_workers=2"])
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_that_were_begun_go_on_and_of_other_images_begin_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [f"--dataset=folder:{folder}", f"--output={tmp_path / 'shards'}", "--shards=4"]
    written: list[str] = []

    def breaks_off(shard: write_shards.Shard) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write_shards.write_shard(shard)
        written.append(Path(shard.path).name)

    def counts(shard: write_shards.Shard) -> None:
        written.append(Path(shard.path).name)
        write_shards.write_shard(shard)

    monkeypatch.setattr(shard_writers, "write_shard", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        convert(asked)
    assert not (tmp_path / "shards").exists()
    begun = list(written)
    monkeypatch.setattr(shard_writers, "write_shard", counts)
    convert(asked)
    assert sorted(written) == sorted(set(written))  # none twice
    assert begun == written[:2]
    written.clear()
    convert([*asked[:1], f"--output={tmp_path / 'whole'}", "--shards=4"])
    assert contents(tmp_path / "whole") == contents(tmp_path / "shards")


def test_shards_of_arrays_hold_the_same_pixels(tmp_path: Path) -> None:
    convert(["--dataset=digits", f"--output={tmp_path / 'shards'}"])
    ours, theirs = open_dataset(f"array_record:{tmp_path}/shards/*.array_record"), open_dataset("digits")
    assert np.array_equal(ours.test.images[7], np.repeat(theirs.test.images[7], 3, axis=-1))
    assert np.array_equal(ours.test.labels, theirs.test.labels)


def test_shards_that_are_incomplete_are_refused(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    with pytest.raises(UserError, match=r"no file matches; make them with python -m tools.convert"):
        open_dataset(f"array_record:{shards}/*.array_record")
    convert([f"--dataset=folder:{folder}", f"--output={shards}", "--shards=2"])
    with pytest.raises(UserError, match="is not empty; give another folder"):
        convert([f"--dataset=folder:{folder}", f"--output={shards}"])
    with pytest.raises(UserError, match="none of the 2 files is of train"):
        open_dataset(f"array_record:{shards}/val*.array_record")
    with pytest.raises(UserError, match="none of the 2 files is of validation"):
        open_dataset(f"array_record:{shards}/train*.array_record")
    (shards / "train-00001-of-00002.array_record").unlink()
    with pytest.raises(UserError, match=r"train: 1 files hold 8 records, train-labels.npy 16 labels"):
        open_dataset(f"array_record:{shards}/*.array_record")
    (shards / "dataset.json").write_text(json.dumps({"version": 9, "classes": []}))
    with pytest.raises(UserError, match="version 9, this is 1"):
        open_dataset(f"array_record:{shards}/*.array_record")


def test_a_label_without_a_class_is_refused_or_left_out(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    convert([f"--dataset=folder:{folder}", f"--output={shards}"])
    labels = np.load(shards / "train-labels.npy")
    labels[5] = 7
    np.save(shards / "train-labels.npy", labels)
    name = f"array_record:{shards}/*.array_record"
    with pytest.raises(UserError, match=r"1 of 16 images are bad: .*\(label 7, there are 2 classes\)"):
        open_dataset(name)
    with pytest.raises(UserError, match="label 7 in its train split; labels go from 0 to 1"):
        open_dataset(name, bad_images="unchecked")
    assert len(open_dataset(name, bad_images="skip").train) == 15


@pytest.mark.parametrize("kind", ["folder", "array_record"])
def test_readers_go_to_worker_processes(kind: str, folder: Path, tmp_path: Path) -> None:
    name = f"folder:{folder}"
    if kind == "array_record":
        convert([f"--dataset={name}", f"--output={tmp_path / 'shards'}"])
        name = f"array_record:{tmp_path}/shards/*.array_record"
    source = open_dataset(name).train
    source.images[0]  # opens what stays in this process
    there = pickle.loads(pickle.dumps(source))
    assert np.array_equal(there.images[4], source.images[4])


def test_names_of_data_sets(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown data set 'cifar'; nearest is 'cifar\d+', all are digits, .*tfds:NAME"
    ):
        open_dataset("cifar")
    with pytest.raises(UserError, match="the path stands in the name"):
        open_dataset(f"folder:{folder}", "/tmp")
    assert dataclasses.is_dataclass(open_dataset("digits"))
