"""What a step minimises. An objective is a function of student logits, labels and teacher logits; it knows no model.

Shapes: logits (B, classes), labels (B,) int, losses (B,).
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import optax


class Objective(Protocol):
    """Per-example losses (B,) of logits (B, classes); `teacher` has their shape, or is None where there is no teacher."""

    def __call__(self, logits: jax.Array, labels: jax.Array, teacher: jax.Array | None) -> jax.Array: ...


def classification(label_smoothing: float) -> Objective:
    """Softmax cross-entropy with smoothed labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def loss(logits: jax.Array, labels: jax.Array, teacher: jax.Array | None) -> jax.Array:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        return optax.softmax_cross_entropy(logits, targets)

    return loss


def distillation(alpha: float, temperature: float, label_smoothing: float) -> Objective:
    """alpha·T²·KL(teacher ‖ student) at temperature T, plus (1 - alpha) times the cross-entropy.

    Hinton et al. 2015, arXiv:1503.02531, section 2; T² keeps the gradients of the soft part at the scale of the hard one.
    """
    hard = classification(label_smoothing)

    def loss(logits: jax.Array, labels: jax.Array, teacher: jax.Array | None) -> jax.Array:
        if teacher is None:
            raise ValueError("distillation needs the teacher's logits")
        student_log = jax.nn.log_softmax(logits / temperature)
        soft = optax.losses.kl_divergence_with_log_targets(
            student_log, jax.nn.log_softmax(teacher / temperature)
        )
        return alpha * temperature**2 * soft + (1 - alpha) * hard(logits, labels, teacher)

    return loss


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the largest logit is the label's, as (B,) float32."""
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
