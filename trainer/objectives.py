"""What a step minimises. An objective is a function of what student and teacher put out, and of the labels; it knows no model.

Shapes: B batch, T tokens, D width of the teacher, w of the student; logits (B, classes), labels (B, classes), each row a
distribution (of one class, or of those that were mixed), losses (B,).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.models.outputs import Outputs
from trainer.schedules import Schedule


class Objective(Protocol):
    """Per-example losses (B,) at a step; `teacher` is None where there is none."""

    def __call__(
        self, student: Outputs, labels: jax.Array, teacher: Outputs | None, step: jax.Array | int
    ) -> jax.Array: ...


class Imitation(Protocol):
    """`alpha` times what it costs (B,) to answer with `logits` where the teacher answers `taught`."""

    def __call__(
        self, alpha: jax.Array | float, logits: jax.Array, taught: jax.Array, temperature: jax.Array | float
    ) -> jax.Array: ...


def classification(label_smoothing: float) -> Objective:
    """Softmax cross-entropy with smoothed labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def loss(
        student: Outputs, labels: jax.Array, teacher: Outputs | None, step: jax.Array | int
    ) -> jax.Array:
        return _cross_entropy(student.logits, labels, label_smoothing)

    return loss


def distillation(
    alpha: Schedule,
    temperature: Schedule,
    label_smoothing: float,
    imitate: Imitation | None = None,
    token: bool = False,
) -> Objective:
    """alpha times the imitation of the teacher (`soft` where none is given), plus (1 - alpha) times the cross-entropy.

    With `token` the student has two heads: that of the distillation token learns from the teacher, that of the class token from
    the labels (Touvron et al. 2021, arXiv:2012.12877, section 4).
    """
    imitate = imitate or soft

    def loss(
        student: Outputs, labels: jax.Array, teacher: Outputs | None, step: jax.Array | int
    ) -> jax.Array:
        if teacher is None:
            raise ValueError("distillation needs the teacher's logits")
        own, imitating = student.heads if token else (student.logits, student.logits)
        share = alpha(step)
        imitation = imitate(share, imitating, teacher.logits, temperature(step))
        return imitation + (1 - share) * _cross_entropy(own, labels, label_smoothing)

    return loss


def soft(
    alpha: jax.Array | float, logits: jax.Array, taught: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """alpha·T²·KL(teacher ‖ student) at temperature T (Hinton et al. 2015, arXiv:1503.02531, section 2).

    T² keeps the gradients of the soft part at the scale of the hard one. At T = 1 and alpha = 1 this is function matching (Beyer et
    al. 2022, arXiv:2106.05237), if both see the same mixed images.
    """
    student_log = jax.nn.log_softmax(logits / temperature)
    divergence = optax.losses.kl_divergence_with_log_targets(
        student_log, jax.nn.log_softmax(taught / temperature)
    )
    return alpha * temperature**2 * divergence


def hard(
    alpha: jax.Array | float, logits: jax.Array, taught: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """alpha times the cross-entropy to the class that the teacher prefers (DeiT, section 4); alpha = 1/2 is DeiT's."""
    return alpha * optax.softmax_cross_entropy_with_integer_labels(logits, taught.argmax(axis=-1))


def _cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, smoothing))


def with_features(
    objective: Objective,
    weight: float,
    kind: str,
    pairs: Sequence[tuple[int, int]],
    to_student: np.ndarray[Any, np.dtype[Any]] | None,
) -> Objective:
    """`objective` plus `weight` times how far the student's streams are from the teacher's, the mean over `pairs` of blocks.

    A pair is (student's block, teacher's block). `kind` is "mse", the mean square over tokens and channels, or "cosine", the mean
    over tokens of 1 - cos. `to_student` (D, w) maps the teacher's stream into the student's; None where they are the same.
    """
    distance = {"mse": mean_square, "cosine": cosine_distance}[kind]

    def loss(
        student: Outputs, labels: jax.Array, teacher: Outputs | None, step: jax.Array | int
    ) -> jax.Array:
        if teacher is None or not teacher.blocks:
            raise ValueError("matching features needs the teacher's blocks")
        total = jnp.zeros(len(labels))
        for own, source in pairs:
            ours, theirs = (
                stream.astype(jnp.float32) for stream in (student.blocks[own], teacher.blocks[source])
            )
            total += distance(ours, theirs if to_student is None else theirs @ to_student)
        return objective(student, labels, teacher, step) + weight * total / len(pairs)

    return loss


def mean_square(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """Two streams (B, T, w) → the mean square of their difference (B,)."""
    return ((ours - theirs) ** 2).mean(axis=(1, 2))


def cosine_distance(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """Two streams (B, T, w) → the mean over tokens of 1 - cos (B,)."""
    return (1 - optax.losses.cosine_similarity(ours, theirs, epsilon=1e-6)).mean(axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the largest logit is that of the label (B,) int, as (B,) float32."""
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
