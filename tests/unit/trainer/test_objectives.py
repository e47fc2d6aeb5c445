"""Objectives against their formulas in numpy."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from trainer import objectives
from trainer.models.outputs import Outputs
from trainer.schedules import constant, decay

LOGITS, TEACHER = (
    3 * np.random.default_rng(seed).standard_normal((5, 4)).astype(np.float32) for seed in (0, 1)
)
LABELS = np.eye(4, dtype=np.float32)[[0, 3, 1, 1, 2]]
STUDENT, ANSWERS = Outputs(LOGITS), Outputs(TEACHER)
# float32 against float64: losses of size 1 to 50 from a few exponentials and sums are right to some 1e-6 of themselves.
FLOAT32 = 1e-5


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def cross_entropy(smoothing: float = 0.0) -> np.ndarray:
    return cross_entropy_of(LOGITS, (1 - smoothing) * LABELS + smoothing / 4)


def cross_entropy_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -(targets * log_softmax(logits)).sum(axis=-1)


def kl(temperature: float, logits: np.ndarray = LOGITS) -> np.ndarray:
    teacher, student = log_softmax(TEACHER / temperature), log_softmax(logits / temperature)
    return (np.exp(teacher) * (teacher - student)).sum(axis=-1)


def soft(alpha: float, temperature: float, smoothing: float = 0.0) -> objectives.Objective:
    return objectives.distillation(constant(alpha), constant(temperature), smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_the_cross_entropy_of_smoothed_labels(smoothing: float) -> None:
    losses = objectives.classification(smoothing)(STUDENT, LABELS, None, 0)
    np.testing.assert_allclose(losses, cross_entropy(smoothing), rtol=FLOAT32)


@pytest.mark.parametrize(
    ("alpha", "temperature", "smoothing"), [(0.9, 2.0, 0.0), (0.3, 5.0, 0.1), (1.0, 1.0, 0.0)]
)
def test_distillation_is_its_formula(alpha: float, temperature: float, smoothing: float) -> None:
    losses = soft(alpha, temperature, smoothing)(STUDENT, LABELS, ANSWERS, 0)
    expected = alpha * temperature**2 * kl(temperature) + (1 - alpha) * cross_entropy(smoothing)
    np.testing.assert_allclose(losses, expected, rtol=FLOAT32)


def test_the_soft_part_keeps_its_scale_when_the_temperature_grows() -> None:
    """T² · KL tends to the mean squared difference of centred logits over 2 (Hinton et al. 2015, equation 4)."""
    losses = soft(1.0, 100.0)(STUDENT, LABELS, ANSWERS, 0)
    difference = TEACHER.astype(np.float64) - LOGITS
    limit = difference.var(axis=-1) / 2
    # The next term of the series is about |logits| / T = 10 / 100 of the first; KL of some 1e-3 is itself known to 1e-4 in float32.
    np.testing.assert_allclose(losses, limit, rtol=0.1)


def test_alpha_0_is_the_plain_cross_entropy() -> None:
    plain = objectives.classification(0.1)(STUDENT, LABELS, None, 0)
    assert np.array_equal(soft(0.0, 2.0, 0.1)(STUDENT, LABELS, ANSWERS, 0), plain)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    objective = soft(1.0, 2.0)
    # A difference of logs that are equal up to their own rounding (6e-8 of at most 10), times T² = 4.
    np.testing.assert_allclose(objective(ANSWERS, LABELS, ANSWERS, 0), 0, atol=4e-6)
    gradient = jax.grad(lambda logits: objective(Outputs(logits), LABELS, ANSWERS, 0).mean())(TEACHER)
    np.testing.assert_allclose(gradient, 0, atol=4e-6)


def test_a_teacher_shifted_by_a_constant_teaches_the_same() -> None:
    objective = soft(1.0, 2.0)
    # Adding 3 to a float32 logit rounds it by up to 5e-7.
    np.testing.assert_allclose(
        objective(STUDENT, LABELS, Outputs(TEACHER + 3), 0),
        objective(STUDENT, LABELS, ANSWERS, 0),
        rtol=FLOAT32,
        atol=1e-5,
    )


def test_distillation_without_a_teacher_is_an_error() -> None:
    with pytest.raises(ValueError, match="teacher"):
        soft(0.5, 2.0)(STUDENT, LABELS, None, 0)


def test_hard_distillation_takes_the_teachers_best_class_for_a_label() -> None:
    """DeiT, equation 3: half the cross-entropy to the labels, half that to the teacher's decision."""
    objective = objectives.distillation(constant(0.5), constant(1.0), 0.1, objectives.hard)
    decided = cross_entropy_of(LOGITS, np.eye(4)[TEACHER.argmax(axis=-1)])
    expected = cross_entropy(0.1) / 2 + decided / 2
    np.testing.assert_allclose(objective(STUDENT, LABELS, ANSWERS, 0), expected, rtol=FLOAT32)


def test_the_temperature_means_nothing_to_a_hard_answer() -> None:
    losses = [
        objectives.distillation(constant(0.7), constant(t), 0.0, objectives.hard)(STUDENT, LABELS, ANSWERS, 0)
        for t in (1.0, 9.0)
    ]
    assert np.array_equal(*losses)


@pytest.mark.parametrize("imitate", [objectives.soft, objectives.hard])
def test_with_a_token_its_head_learns_from_the_teacher_and_the_other_from_the_labels(
    imitate: objectives.Imitation,
) -> None:
    own, imitating = LOGITS, LOGITS[::-1].copy()
    student = Outputs((own + imitating) / 2, (own, imitating))
    objective = objectives.distillation(constant(0.3), constant(2.0), 0.0, imitate, token=True)
    hard = cross_entropy_of(imitating, np.eye(4)[TEACHER.argmax(axis=-1)])
    taught = hard if imitate is objectives.hard else 4 * kl(2.0, imitating)
    expected = 0.3 * taught + 0.7 * cross_entropy_of(own, LABELS)
    np.testing.assert_allclose(objective(student, LABELS, ANSWERS, 0), expected, rtol=FLOAT32)


def test_labels_may_be_mixed() -> None:
    mixed = 0.25 * LABELS + 0.75 * LABELS[::-1]
    losses = objectives.classification(0.0)(STUDENT, mixed, None, 0)
    np.testing.assert_allclose(losses, cross_entropy_of(LOGITS, mixed), rtol=FLOAT32)


def test_alpha_and_temperature_are_those_of_the_step() -> None:
    alpha, temperature = decay(0.9, 0.5, 10, "linear"), decay(4.0, 1.0, 10, "linear")
    objective = objectives.distillation(alpha, temperature, 0.0)
    expected = 0.7 * 2.5**2 * kl(2.5) + 0.3 * cross_entropy()  # half-way
    np.testing.assert_allclose(objective(STUDENT, LABELS, ANSWERS, 5), expected, rtol=FLOAT32)


# Features: the teacher's streams of width 6 against the student's of width 3, in blocks 1 and 0 of two students' blocks.
RNG = np.random.default_rng(7)
OURS = [RNG.standard_normal((5, 2, 3)).astype(np.float32) for _ in range(2)]
THEIRS = [RNG.standard_normal((5, 2, 6)).astype(np.float32) for _ in range(3)]
NARROW = RNG.standard_normal((6, 3)).astype(np.float32)


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    sizes = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return (1 - (ours * theirs).sum(axis=-1) / sizes).mean(axis=-1)


def _square(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return ((ours - theirs) ** 2).reshape(5, -1).mean(axis=-1)


@pytest.mark.parametrize(("kind", "distance"), [("mse", _square), ("cosine", _cosine)])
def test_features_add_the_mean_distance_of_the_matched_blocks(
    kind: str, distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    plain = objectives.classification(0.0)
    objective = objectives.with_features(plain, 0.5, kind, [(0, 0), (1, 2)], NARROW)
    student, teacher = Outputs(LOGITS, (), tuple(OURS)), Outputs(TEACHER, (), tuple(THEIRS))
    expected = cross_entropy() + 0.25 * (
        distance(OURS[0], THEIRS[0] @ NARROW) + distance(OURS[1], THEIRS[2] @ NARROW)
    )
    np.testing.assert_allclose(objective(student, LABELS, teacher, 0), expected, rtol=FLOAT32)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_a_student_with_its_teachers_streams_has_no_distance_from_it(kind: str) -> None:
    plain = objectives.classification(0.0)
    objective = objectives.with_features(plain, 1.0, kind, [(1, 1)], None)
    same = Outputs(LOGITS, (), tuple(OURS))
    # A cosine of 1 is right to some 1e-7; losses beside it are of size 10.
    np.testing.assert_allclose(objective(same, LABELS, same, 0), plain(same, LABELS, None, 0), atol=2e-6)


def test_features_without_the_teachers_blocks_are_an_error() -> None:
    objective = objectives.with_features(objectives.classification(0.0), 1.0, "mse", [(0, 0)], None)
    with pytest.raises(ValueError, match="blocks"):
        objective(Outputs(LOGITS, (), tuple(OURS)), LABELS, ANSWERS, 0)


def test_accuracy_counts_the_largest_logit() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    right = objectives.accuracy(jax.numpy.asarray(logits), jax.numpy.array([1, 2]))
    assert right.tolist() == [1.0, 0.0]
