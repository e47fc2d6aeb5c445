"""The configuration of a training run, with the field's own names."""

import dataclasses
from typing import Annotated

from trainer.config.fields import Problems

AUGMENTATIONS = ("none", "shift", "shift_flip")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; data=-1 takes the devices that the others leave."""

    data: Annotated[int, "batch axis; -1 takes the devices that the others leave"]
    fsdp: Annotated[int, "axis over which parameters and batch are cut"]
    model: Annotated[int, "axis over which heads and neurons are cut"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run: from scratch, fine-tuning, or distillation when `distill_weight` is above 0.

    Raises:
      ConfigError: on construction, naming everything that is wrong.
    """

    seed: Annotated[int, "of weights, shuffling, augmentation and dropout"]
    dataset: Annotated[str, "name of the data set"]
    data_dir: Annotated[str, "folder of the data set's files; empty: where it is known to be"]
    image_size: Annotated[int, "side in pixels of the square images"]
    aug: Annotated[str, "augmentation: none, shift or shift_flip"]
    model: Annotated[
        str, "a variant's name; also that of the pretrained file, but checkpoints know their own"
    ]
    pretrained: Annotated[
        str, "first weights: a checkpoint, or a published .npz or .safetensors (path or URL)"
    ]
    shape_of: Annotated[str, "path of a checkpoint: its shape, with fresh weights"]
    teacher_weights: Annotated[str, "path of the teacher's checkpoint"]
    distill_weight: Annotated[float, "alpha in alpha·T²·KL + (1 - alpha)·CE"]
    distill_temperature: Annotated[float, "T of distill_weight"]
    batch: Annotated[int, "images of one step, over all processes"]
    batch_eval: Annotated[int, "images per batch of the evaluation"]
    total_steps: Annotated[int, "when training ends"]
    warmup_steps: Annotated[int, "of the learning rate, from 0 to base_lr"]
    base_lr: Annotated[float, "largest learning rate; a cosine to 0 follows"]
    wd: Annotated[float, "decoupled weight decay, multiplied by the learning rate as optax.adamw does"]
    do: Annotated[float, "dropout rate"]
    sd: Annotated[float, "stochastic depth rate of the last block"]
    label_smoothing: Annotated[float, "share of each label that goes to all classes"]
    grad_norm_clip: Annotated[float, "largest norm of the gradients"]
    eval_every: Annotated[int, "steps from one evaluation to the next"]
    checkpoint_every: Annotated[int, "steps from one checkpoint to the next"]
    keep_last: Annotated[int, "newest checkpoints that are kept"]
    log_every: Annotated[int, "steps from one line of metrics.jsonl to the next"]
    workers: Annotated[int, "Grain worker processes; 0 reads in this one"]
    mesh: MeshShape

    def __post_init__(self) -> None:
        found = Problems()
        self._check_ranges(found)
        self._check_parts(found)
        mesh, axes = self.mesh, f"mesh {self.mesh.data} x {self.mesh.fsdp} x {self.mesh.model}"
        fine = min(mesh.fsdp, mesh.model) >= 1 and (mesh.data >= 1 or mesh.data == -1)
        found.check(fine, f"{axes} (data, fsdp, model) must have positive axes (data may be -1: the rest)")
        found.refuse()

    def _check_ranges(self, found: Problems) -> None:
        found.check_at_least(
            1,
            image_size=self.image_size,
            batch=self.batch,
            batch_eval=self.batch_eval,
            total_steps=self.total_steps,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            keep_last=self.keep_last,
            log_every=self.log_every,
        )
        found.check_at_least(0, warmup_steps=self.warmup_steps, workers=self.workers, wd=self.wd)
        found.check_above_0(
            base_lr=self.base_lr,
            grad_norm_clip=self.grad_norm_clip,
            distill_temperature=self.distill_temperature,
        )
        for name in ("do", "sd", "label_smoothing"):
            found.check(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)")
        found.check(0 <= self.distill_weight <= 1, f"distill_weight={self.distill_weight} must be in [0, 1]")
        found.check(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32)")

    def _check_parts(self, found: Problems) -> None:
        found.check(self.aug in AUGMENTATIONS, f"aug={self.aug!r} must be one of {', '.join(AUGMENTATIONS)}")
        warmup, total = self.warmup_steps, self.total_steps
        found.check(warmup < total, f"warmup_steps={warmup} is not below total_steps={total}; lower it")
        both, any_of = self.pretrained and self.shape_of, self.model or self.pretrained or self.shape_of
        found.check(not both, "pretrained and shape_of exclude each other; set one of them")
        found.check(bool(any_of), "model is empty; name one, or set pretrained or shape_of to a checkpoint")
        distils, teacher = self.distill_weight > 0, bool(self.teacher_weights)
        found.check(
            teacher or not distils, "distill_weight is above 0 but teacher_weights names no checkpoint"
        )
        found.check(
            distils or not teacher, "teacher_weights is set but distill_weight is 0; set both or none"
        )
