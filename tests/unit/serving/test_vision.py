"""From logits to labels."""

import numpy as np
import pytest

from serving.service import vision


def test_probabilities_sum_to_one_however_large_the_logits() -> None:
    logits = np.array([[1e4, 1e4, 0.0], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0]], np.float32)
    probabilities = vision.softmax(logits)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(
        probabilities.sum(axis=1), 1.0, rtol=1e-15
    )  # three doubles: a few units in the last place
    assert probabilities[0].tolist() == [0.5, 0.5, 0.0]


def test_labels_are_the_most_probable_first_and_ties_keep_the_order_of_classes() -> None:
    labels = vision.top_labels(np.array([0.25, 0.25, 0.4, 0.1]), 3, ("a", "b", "c", "d"))
    assert [(label.index, label.name) for label in labels] == [(2, "c"), (0, "a"), (1, "b")]
    assert labels[0].probability == pytest.approx(0.4)


def test_a_class_without_a_name_has_an_empty_one() -> None:
    [label] = vision.top_labels(np.array([0.1, 0.9]), 1, ("only",))
    assert (label.index, label.name) == (1, "")
