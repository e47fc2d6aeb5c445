"""The configuration of a training run, with the field's own names."""

import dataclasses
import math
import re
from typing import Annotated

from trainer.config.fields import Problems

OPTIMISERS = ("adamw", "muon", "sgd", "adafactor", "lion")
LR_DECAYS = ("cosine", "linear", "rsqrt")
AUGMENTATIONS = ("none", "shift", "shift_flip")
DISTILL_LOSSES = ("soft", "hard", "token", "token_soft")
DECAYS = ("linear", "cosine")
FEATURE_LOSSES = ("mse", "cosine")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; data=-1 takes the devices that the others leave."""

    data: Annotated[int, "batch axis; -1 takes the devices that the others leave"]
    fsdp: Annotated[int, "axis over which parameters and batch are cut"]
    model: Annotated[int, "axis over which heads and neurons are cut"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run: from scratch, fine-tuning, or distillation when `distill_weight` or `feature_weight` is above 0.

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
    mixup: Annotated[
        float, "Beta parameter of the share in which a batch's images are mixed, for the teacher too; 0: off"
    ]
    teacher_weights: Annotated[
        str, "the teacher: a checkpoint, a bundle, or a published .npz or .safetensors (path or URL)"
    ]
    teacher_model: Annotated[str, "the variant's name of a published teacher; our own know theirs"]
    teacher_epochs: Annotated[
        int, "epochs after which augmentation repeats, so that answers can be stored; 0: never"
    ]
    teacher_cache: Annotated[
        str, "folder of the teacher's stored answers, filled first where they lack; empty: ask at every step"
    ]
    distill_loss: Annotated[
        str,
        "soft: alpha·T²·KL + (1 - alpha)·CE; hard: CE to the teacher's best class in place of KL; token: hard, by the "
        "distillation token's head; token_soft: soft, by that head",
    ]
    distill_weight: Annotated[float, "alpha, the teacher's share of the loss"]
    distill_weight_end: Annotated[float, "alpha at the end of the run; -1: the same throughout"]
    distill_temperature: Annotated[float, "T of distill_weight"]
    distill_temperature_end: Annotated[float, "T at the end of the run; -1: the same throughout"]
    distill_decay: Annotated[str, "linear or cosine: how alpha and T come to their ends"]
    feature_weight: Annotated[float, "of the distance between blocks of student and teacher; 0: off"]
    feature_loss: Annotated[str, "mse or cosine: that distance"]
    feature_blocks: Annotated[str, "the student's blocks that are matched, such as 2,5; empty: all"]
    qat_steps: Annotated[
        int, "last steps, whose products are rounded to 8 bits as int8 exports them; 0: none"
    ]
    batch: Annotated[int, "images of one step, over all processes"]
    batch_eval: Annotated[int, "images per batch of the evaluation"]
    accum_steps: Annotated[
        int, "parts in which a step takes its batch, one after another, to need less memory; 1: all at once"
    ]
    total_steps: Annotated[int, "when training ends"]
    warmup_steps: Annotated[int, "of the learning rate, from 0 to base_lr"]
    optim: Annotated[
        str,
        "adamw; muon: kernels of all blocks along orthogonal directions, Adam for the rest; sgd with momentum 0.9; adafactor: "
        "factored second moments; lion, at a third to a tenth of AdamW's base_lr",
    ]
    base_lr: Annotated[float, "largest learning rate, reached at the end of the warm-up"]
    decay_type: Annotated[str, "of the learning rate after it: cosine or linear to 0, or rsqrt: 1/√step"]
    wd: Annotated[float, "decoupled decay of kernels, multiplied by the learning rate with every optimiser"]
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

    @property
    def distils(self) -> bool:
        """Whether a teacher takes part."""
        return max(self.distill_weight, self.distill_weight_end, self.feature_weight) > 0

    @property
    def matched_blocks(self) -> tuple[int, ...]:
        """The blocks that `feature_blocks` names; () for all of them."""
        return tuple(int(part) for part in self.feature_blocks.split(",") if part)

    def _check_ranges(self, found: Problems) -> None:
        found.check_at_least(
            1,
            image_size=self.image_size,
            batch=self.batch,
            batch_eval=self.batch_eval,
            accum_steps=self.accum_steps,
            total_steps=self.total_steps,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            keep_last=self.keep_last,
            log_every=self.log_every,
        )
        found.check_at_least(
            0,
            warmup_steps=self.warmup_steps,
            workers=self.workers,
            wd=self.wd,
            mixup=self.mixup,
            qat_steps=self.qat_steps,
            teacher_epochs=self.teacher_epochs,
            feature_weight=self.feature_weight,
        )
        found.check_above_0(
            base_lr=self.base_lr,
            grad_norm_clip=self.grad_norm_clip,
            distill_temperature=self.distill_temperature,
        )
        for name in ("do", "sd", "label_smoothing"):
            found.check(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)")
        found.check(0 <= self.distill_weight <= 1, f"distill_weight={self.distill_weight} must be in [0, 1]")
        alpha, temperature = self.distill_weight_end, self.distill_temperature_end
        found.check(
            alpha == -1 or 0 <= alpha <= 1, f"distill_weight_end={alpha} must be in [0, 1], or -1: none"
        )
        fine = temperature == -1 or 0 < temperature < math.inf
        found.check(fine, f"distill_temperature_end={temperature} must be above 0, or -1: none")
        found.check(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32)")

    def _check_parts(self, found: Problems) -> None:
        found.check(self.aug in AUGMENTATIONS, f"aug={self.aug!r} must be one of {', '.join(AUGMENTATIONS)}")
        warmup, total = self.warmup_steps, self.total_steps
        found.check(warmup < total, f"warmup_steps={warmup} is not below total_steps={total}; lower it")
        qat = self.qat_steps
        found.check(qat <= total, f"qat_steps={qat} is above total_steps={total}; lower it")
        both, any_of = self.pretrained and self.shape_of, self.model or self.pretrained or self.shape_of
        found.check(not both, "pretrained and shape_of exclude each other; set one of them")
        found.check(bool(any_of), "model is empty; name one, or set pretrained or shape_of to a checkpoint")
        self._check_choices(found)
        distils, teacher = self.distils, bool(self.teacher_weights)
        found.check(
            teacher or not distils,
            f"{'distill_weight' if self.distill_weight > 0 else 'feature_weight or distill_weight_end'} is above 0 "
            "but teacher_weights names no checkpoint",
        )
        found.check(
            distils or not teacher, "teacher_weights is set but distill_weight is 0; set both or none"
        )
        self._check_cache(found)

    def _check_choices(self, found: Problems) -> None:
        for name, allowed in (
            ("optim", OPTIMISERS),
            ("decay_type", LR_DECAYS),
            ("distill_loss", DISTILL_LOSSES),
            ("distill_decay", DECAYS),
            ("feature_loss", FEATURE_LOSSES),
        ):
            value = getattr(self, name)
            found.check(value in allowed, f"{name}={value!r} must be one of {', '.join(allowed)}")
        blocks = re.fullmatch(r"(\d+(,\d+)*)?", self.feature_blocks)
        found.check(
            blocks is not None,
            f"feature_blocks={self.feature_blocks!r} must be numbers such as 2,5, or empty",
        )

    def _check_cache(self, found: Problems) -> None:
        """Stored answers are of whole, single views, and of nothing but the teacher's logits."""
        if not self.teacher_cache:
            return
        for fine, problem in (
            (
                self.distils,
                "teacher_cache is set but there is no teacher; set distill_weight and teacher_weights",
            ),
            (self.teacher_epochs > 0, "teacher_cache needs teacher_epochs, after which views come again"),
            (not self.mixup, "mixup and teacher_cache exclude each other: mixed images never come again"),
            (
                not self.feature_weight,
                "feature_weight and teacher_cache exclude each other: only logits are stored",
            ),
        ):
            found.check(fine, problem)
