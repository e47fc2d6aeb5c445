"""Stored answers: what is read is what was written, for the key that it was written for."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from trainer.cached_logits import ALL_UP_TO, CLASSES, LOGITS, TOP, CachedLogits, Key, compact, create, dense

KEY = Key("teacher", "data", 5, 10, "spec", "shift", seed=3, teacher_epochs=2, views="views")
MANY = dataclasses.replace(KEY, classes=ALL_UP_TO + 1)


def _logits(rows: int, classes: int = KEY.classes) -> np.ndarray:
    return (4 * np.random.default_rng(0).standard_normal((rows, classes))).astype(np.float32)


def _filled(folder: Path, key: Key, logits: np.ndarray) -> CachedLogits:
    create(folder, key)
    cache = CachedLogits(folder, key)
    cache.write(np.arange(len(logits)), logits)
    return cache


def test_answers_are_found_by_example_and_epoch(tmp_path: Path) -> None:
    logits = _logits(10)
    _filled(tmp_path, KEY, logits)
    read = CachedLogits(tmp_path, KEY).read(np.array([4, 0, 4]), np.array([0, 1, 1]))
    assert read.keys() == {LOGITS}
    assert read[LOGITS].dtype == np.float32
    assert np.array_equal(read[LOGITS], logits[[4, 5, 9]])


def test_filling_goes_on_where_it_ended(tmp_path: Path) -> None:
    logits = _logits(10)
    _filled(tmp_path, KEY, logits[:3])
    create(tmp_path, KEY)  # what is there stays
    again = CachedLogits(tmp_path, KEY)
    assert again.filled == 3
    again.write(np.arange(3, 10), logits[3:])
    assert np.array_equal(again.read(np.arange(5), np.ones(5, int))[LOGITS], logits[5:])


def test_an_answer_that_is_not_there_is_never_a_zero(tmp_path: Path) -> None:
    cache = _filled(tmp_path, KEY, _logits(3))
    with pytest.raises(ValueError, match="does not hold yet"):
        cache.read(np.array([2, 3]), np.array([0, 0]))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Key)])
def test_answers_of_another_kind_are_refused_by_name(name: str, tmp_path: Path) -> None:
    create(tmp_path, KEY)
    old = getattr(KEY, name)
    changed = dataclasses.replace(KEY, **{name: old + 1 if isinstance(old, int) else "other"})
    with pytest.raises(
        UserError, match=rf"of another kind: {name} is {old!r} there, .* now; give another folder"
    ):
        CachedLogits(tmp_path, changed)


@pytest.mark.parametrize(("file", "content"), [("logits.npy", b"x"), ("filled", b"many"), ("key.json", b"{")])
def test_damaged_files_are_refused_in_one_line(file: str, content: bytes, tmp_path: Path) -> None:
    create(tmp_path, KEY)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read: .*; remove it to fill it anew"):
        CachedLogits(tmp_path, KEY)


def test_of_many_classes_the_best_are_stored_and_the_rest_share_what_is_left(tmp_path: Path) -> None:
    logits = _logits(10, MANY.classes)
    read = _filled(tmp_path, MANY, logits).read(np.arange(5), np.zeros(5, int))
    assert read[LOGITS].shape == (5, TOP + 1)
    assert read[CLASSES].dtype == np.int32
    restored = np.asarray(dense({name: jnp.asarray(value) for name, value in read.items()}, MANY.classes))
    for row, whole in zip(restored, logits[:5], strict=True):
        best = np.argsort(-whole)[:TOP]
        assert np.array_equal(row[best], whole[best])
        assert len(set(np.delete(row, best).tolist())) == 1
        # The total of the exponentials is that of all classes: one float32 logit stands for the rest, right to 6e-8 of its size.
        assert np.exp(row, dtype=np.float64).sum() == pytest.approx(
            np.exp(whole, dtype=np.float64).sum(), rel=1e-5
        )


def test_huge_logits_are_compacted_without_overflow() -> None:
    best, classes = compact(1e4 + _logits(2, MANY.classes))
    assert np.isfinite(best).all()
    assert classes.shape == (2, TOP)
