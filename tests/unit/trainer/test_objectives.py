"""Objectives against their formulas in numpy."""

import jax
import numpy as np
import pytest

from trainer import objectives

LOGITS, TEACHER = (
    3 * np.random.default_rng(seed).standard_normal((5, 4)).astype(np.float32) for seed in (0, 1)
)
LABELS = np.array([0, 3, 1, 1, 2])
# float32 against float64: losses of size 1 to 50 from a few exponentials and sums are right to some 1e-6 of themselves.
FLOAT32 = 1e-5


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def cross_entropy(smoothing: float = 0.0) -> np.ndarray:
    targets = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    return -(targets * log_softmax(LOGITS)).sum(axis=-1)


def kl(temperature: float) -> np.ndarray:
    teacher, student = log_softmax(TEACHER / temperature), log_softmax(LOGITS / temperature)
    return (np.exp(teacher) * (teacher - student)).sum(axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_the_cross_entropy_of_smoothed_labels(smoothing: float) -> None:
    losses = objectives.classification(smoothing)(LOGITS, LABELS, None)
    np.testing.assert_allclose(losses, cross_entropy(smoothing), rtol=FLOAT32)


@pytest.mark.parametrize(
    ("alpha", "temperature", "smoothing"), [(0.9, 2.0, 0.0), (0.3, 5.0, 0.1), (1.0, 1.0, 0.0)]
)
def test_distillation_is_its_formula(alpha: float, temperature: float, smoothing: float) -> None:
    losses = objectives.distillation(alpha, temperature, smoothing)(LOGITS, LABELS, TEACHER)
    expected = alpha * temperature**2 * kl(temperature) + (1 - alpha) * cross_entropy(smoothing)
    np.testing.assert_allclose(losses, expected, rtol=FLOAT32)


def test_the_soft_part_keeps_its_scale_when_the_temperature_grows() -> None:
    """T² · KL tends to the mean squared difference of centred logits over 2 (Hinton et al. 2015, equation 4)."""
    losses = objectives.distillation(1.0, 100.0, 0.0)(LOGITS, LABELS, TEACHER)
    difference = TEACHER.astype(np.float64) - LOGITS
    limit = difference.var(axis=-1) / 2
    # The next term of the series is about |logits| / T = 10 / 100 of the first; KL of some 1e-3 is itself known to 1e-4 in float32.
    np.testing.assert_allclose(losses, limit, rtol=0.1)


def test_alpha_0_is_the_plain_cross_entropy() -> None:
    plain = objectives.classification(0.1)(LOGITS, LABELS, None)
    assert np.array_equal(objectives.distillation(0.0, 2.0, 0.1)(LOGITS, LABELS, TEACHER), plain)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    objective = objectives.distillation(1.0, 2.0, 0.0)
    # A difference of logs that are equal up to their own rounding (6e-8 of at most 10), times T² = 4.
    np.testing.assert_allclose(objective(TEACHER, LABELS, TEACHER), 0, atol=4e-6)
    gradient = jax.grad(lambda logits: objective(logits, LABELS, TEACHER).mean())(TEACHER)
    np.testing.assert_allclose(gradient, 0, atol=4e-6)


def test_a_teacher_shifted_by_a_constant_teaches_the_same() -> None:
    objective = objectives.distillation(1.0, 2.0, 0.0)
    # Adding 3 to a float32 logit rounds it by up to 5e-7.
    np.testing.assert_allclose(
        objective(LOGITS, LABELS, TEACHER + 3), objective(LOGITS, LABELS, TEACHER), rtol=FLOAT32, atol=1e-5
    )


def test_distillation_without_a_teacher_is_an_error() -> None:
    with pytest.raises(ValueError, match="teacher"):
        objectives.distillation(0.5, 2.0, 0.0)(LOGITS, LABELS, None)


def test_accuracy_counts_the_largest_logit() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    right = objectives.accuracy(jax.numpy.asarray(logits), jax.numpy.array([1, 2]))
    assert right.tolist() == [1.0, 0.0]
