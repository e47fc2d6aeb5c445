"""The head that is nearest to the teacher's predictions, and how much the doubt about an image counts."""

import numpy as np
import pytest
import scipy.special

from trainer.compress import readout
from trainer.compress.losses import divergence
from trainer.compress.moments import Array

WIDTH, SEEN, CLASSES = 12, 6, 4


def _teacher(images: int, seed: int = 0) -> tuple[Array, Array]:
    """What a student reads, (images, SEEN) of the WIDTH numbers that the teacher's logits (images, CLASSES) depend on."""
    rng = np.random.default_rng(seed)
    kernel = np.random.default_rng(9).normal(size=(WIDTH, CLASSES))
    features = rng.normal(size=(images, WIDTH)) + 0.5
    return features[:, :SEEN].astype(np.float32), (features @ kernel).astype(np.float32)


def _least_squares(features: Array, logits: Array) -> tuple[Array, Array]:
    inputs = np.hstack([features, np.ones((len(features), 1))])
    head = np.linalg.lstsq(inputs, logits, rcond=None)[0]
    return head[:-1].astype(np.float32), head[-1].astype(np.float32)


def test_predictions_come_nearer_than_by_least_squares_also_on_images_that_were_not_seen() -> None:
    features, logits = _teacher(500)
    ridge = _least_squares(features, logits)
    fitted = readout.nearest(features, logits, *ridge)
    for seed in (0, 1):
        features, logits = _teacher(500, seed)
        before, after = (divergence(logits, features @ kernel + bias) for kernel, bias in (ridge, fitted))
        assert after < 0.95 * before


def test_no_head_nearby_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_SPEAK", 1e-6)
    features, logits = _teacher(300)
    kernel, bias = readout.nearest(features, logits, *_least_squares(features, logits))
    least = divergence(logits, features @ kernel + bias)
    rng = np.random.default_rng(2)
    for _ in range(20):
        step = 0.02 * rng.normal(size=kernel.shape)
        assert divergence(logits, features @ (kernel + step) + bias) > least


def test_a_head_that_says_all_the_teacher_does_stays() -> None:
    features, _ = _teacher(200)
    kernel, bias = np.eye(SEEN, CLASSES, dtype=np.float32), np.arange(CLASSES, dtype=np.float32)
    found = readout.nearest(features, features @ kernel + bias, kernel, bias)
    np.testing.assert_allclose(found[0], kernel, atol=1e-4)
    np.testing.assert_allclose(found[1], bias, atol=1e-4)


def test_an_image_counts_by_the_doubt_about_it() -> None:
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0], logits[2, 0] = 50, np.log(3)
    even, sure, uneven = readout.doubt(logits)
    assert np.mean([even, sure, uneven]) == pytest.approx(1)
    assert sure == pytest.approx(0.1)
    chances = scipy.special.softmax(logits[2])
    assert (uneven - 0.1) / (even - 0.1) == pytest.approx(np.sqrt((1 - np.sum(chances**2)) / 0.5))


def test_where_nothing_is_in_doubt_all_images_count_alike() -> None:
    np.testing.assert_array_equal(
        readout.doubt(np.diag([1e3] * 5).astype(np.float32)), np.ones(5, np.float32)
    )
