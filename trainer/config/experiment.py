"""The configuration of a training run, with the field's own names."""

import dataclasses

from trainer.config.fields import Problems

AUGMENTATIONS = ("none", "shift", "shift_flip")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; data=-1 takes the devices that the others leave."""

    data: int
    fsdp: int
    model: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run: from scratch, fine-tuning, or distillation when `distill_weight` is above 0."""

    seed: int
    dataset: str
    data_dir: str
    image_size: int  # pixels, square
    aug: str
    model: str  # a variant's name; not used with pretrained or shape_of
    pretrained: str  # path of a checkpoint: its shape and its weights
    shape_of: str  # path of a checkpoint: its shape, with fresh weights
    teacher_weights: str  # path of the teacher's checkpoint
    distill_weight: float  # alpha in alpha·T²·KL + (1 - alpha)·CE
    distill_temperature: float
    batch: int  # global, over all processes
    batch_eval: int
    total_steps: int
    warmup_steps: int
    base_lr: float
    wd: float  # decoupled weight decay, multiplied by the learning rate as optax.adamw does
    do: float  # dropout rate
    sd: float  # stochastic depth rate of the last block
    label_smoothing: float
    grad_norm_clip: float
    eval_every: int  # steps, like all *_every
    checkpoint_every: int
    keep_last: int  # checkpoints
    log_every: int
    workers: int  # Grain worker processes; 0 reads in this one
    mesh: MeshShape

    def problems(self) -> list[str]:
        """Everything that is wrong, a phrase each; empty for a configuration that can run."""
        found = Problems()
        self._check_ranges(found)
        found.check(self.aug in AUGMENTATIONS, f"aug={self.aug!r} must be one of {', '.join(AUGMENTATIONS)}")
        found.check(self.warmup_steps <= self.total_steps, f"warmup_steps={self.warmup_steps} is above total_steps={self.total_steps}")
        found.check(not (self.pretrained and self.shape_of), "pretrained and shape_of exclude each other; set one")
        found.check(bool(self.model or self.pretrained or self.shape_of), "model is empty; name one, or set pretrained or shape_of")
        distils = self.distill_weight > 0
        found.check(not distils or bool(self.teacher_weights), "distill_weight is above 0 but teacher_weights names no checkpoint")
        found.check(distils or not self.teacher_weights, "teacher_weights is set but distill_weight is 0; set distill_weight too")
        axes = (self.mesh.fsdp, self.mesh.model, self.mesh.data)
        found.check(min(axes[:2]) >= 1 and (axes[2] >= 1 or axes[2] == -1), f"mesh {self.mesh} must have positive axes (data may be -1)")
        return found.found

    def _check_ranges(self, found: Problems) -> None:
        positive = "image_size batch batch_eval total_steps eval_every checkpoint_every keep_last log_every"
        for name in positive.split():
            found.check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup_steps", "workers", "wd", "seed"):
            found.check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        for name in ("base_lr", "grad_norm_clip", "distill_temperature"):
            found.check(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0")
        for name in ("do", "sd", "label_smoothing"):
            found.check(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)")
        found.check(0 <= self.distill_weight <= 1, f"distill_weight={self.distill_weight} must be in [0, 1]")
