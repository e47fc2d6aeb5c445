"""To learn the classes of images, from labels and, where there is one, from a teacher.

The teacher's forward pass is inside the training step, on the very images the student sees, unless its answers come with the
batch.
"""

import dataclasses

import jax
from jax.sharding import Mesh

from serving.preprocess import PreprocessSpec
from trainer import cached_logits, mixing
from trainer.config import Experiment
from trainer.data.global_batch import readers
from trainer.description import Classifier
from trainer.forward import Forward
from trainer.models.build import Params
from trainer.models.outputs import Outputs
from trainer.objectives import Objective, accuracy
from trainer.step import Batch, Metrics, normalise


@dataclasses.dataclass(frozen=True)
class Classifying:
    """A task of `trainer.step`; its frozen parameters are those of a teacher that is asked.

    Batches are {"image": uint8 (B, H, W, C), "label": int32 (B,)}, with the teacher's stored answers, if any, as `cached_logits`
    reads them.
    """

    experiment: Experiment
    model: Classifier
    preprocess: PreprocessSpec
    objective: Objective
    teacher: Classifier | None
    mesh: Mesh

    @property
    def forward(self) -> Forward:
        """How student and teacher are computed."""
        return Forward.of(self.experiment, self.mesh)

    @property
    def draws(self) -> bool:
        """See `Task`."""
        return self.forward.draws

    def seen(self, batch: Batch, step: jax.Array) -> Batch:
        """Normalised images, and "targets" (B, classes): the labels; both mixed, where that is on."""
        spec, alphas = self.preprocess, (self.experiment.mixup, self.experiment.cutmix)
        images = normalise(batch["image"], spec)
        targets = jax.nn.one_hot(batch["label"], self.model.num_classes)
        if any(alphas):
            share = mixing.own_share(self.experiment.seed, step, (spec.height, spec.width), *alphas)
            others = mixing.partners(len(targets), readers(self.mesh))
            images = mixing.mixed(images, others, share)
            targets = mixing.mixed(targets, others, share.mean())
        return {**batch, "image": images, "targets": targets}

    def loss(
        self, params: Params, part: Batch, key: jax.Array | None, step: jax.Array, frozen: Params | None
    ) -> tuple[jax.Array, Metrics]:
        """See `Task`; the other mean is top1, the share of first answers that are right."""
        student = self._student(params, part["image"], key, step)
        losses = self.objective(student, part["targets"], self._taught(part, frozen), step)
        return losses.mean(), {"top1": accuracy(student.logits, part["label"]).mean()}

    def _student(self, params: Params, images: jax.Array, key: jax.Array | None, step: jax.Array) -> Outputs:
        """What the student says, in the last `qat_steps` with products as int8 exports them."""
        forward, experiment = self.forward, self.experiment

        def answer(params: Params) -> Outputs:
            return forward.outputs(self.model, params, images, key)

        def rounded(params: Params) -> Outputs:
            return forward.outputs(self.model, params, images, key, rounded=True)

        if not experiment.qat_steps:
            return answer(params)
        last = step >= experiment.total_steps - experiment.qat_steps
        return jax.lax.cond(last, rounded, answer, params)

    def _taught(self, part: Batch, frozen: Params | None) -> Outputs | None:
        """What the teacher says: as it was stored, or by asking it."""
        if cached_logits.LOGITS in part:
            return Outputs(cached_logits.dense(part, self.model.num_classes))
        if self.teacher is None or frozen is None:
            return None
        return jax.lax.stop_gradient(self.forward.outputs(self.teacher, frozen, part["image"]))
