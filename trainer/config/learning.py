"""How a model learns: what a training and a compression's distillation have in common, with the field's own names."""

import dataclasses
import math
import re
from typing import Annotated

from trainer.config.fields import Problems

OPTIMISERS = ("adamw", "muon", "sgd", "adafactor", "lion")
LR_DECAYS = ("cosine", "linear", "rsqrt")
AUGMENTATIONS = ("none", "shift", "shift_flip", "light", "medium", "strong")
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "dots", "blocks")
DISTILL_LOSSES = ("soft", "hard", "token", "token_soft")
DECAYS = ("linear", "cosine")
FEATURE_LOSSES = ("mse", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """Batches, steps, optimiser, regularisation and distillation. A recipe states what has no default, and what differs."""

    aug: Annotated[
        str,
        "augmentation: none, shift, shift_flip; light: random crops and flips; medium, strong: with RandAugment 2,10 or 2,20 too",
    ] = "none"
    randaug: Annotated[
        str, "layers,magnitude of RandAugment, such as 2,15, in place of that of aug; empty: as aug has it"
    ] = ""
    cutmix: Annotated[
        float,
        "Beta parameter of the share of each image that another one's rectangle covers, for the teacher too; 0: off; with mixup, "
        "each takes half of the steps",
    ] = 0.0
    mixup: Annotated[
        float, "Beta parameter of the share in which a batch's images are mixed, for the teacher too; 0: off"
    ] = 0.0
    teacher_epochs: Annotated[
        int, "epochs after which augmentation repeats, so that answers can be stored; 0: never"
    ] = 0
    teacher_cache: Annotated[
        str, "folder of the teacher's stored answers, filled first where they lack; empty: ask at every step"
    ] = ""
    distill_loss: Annotated[
        str,
        "soft: alpha·T²·KL + (1 - alpha)·CE; hard: CE to the teacher's best class in place of KL; token: hard, by the "
        "distillation token's head; token_soft: soft, by that head",
    ] = "soft"
    distill_weight: Annotated[float, "alpha, the teacher's share of the loss"] = 0.0
    distill_weight_end: Annotated[float, "alpha at the end of the run; -1: the same throughout"] = -1.0
    distill_temperature: Annotated[float, "T of distill_weight"] = 2.0
    distill_temperature_end: Annotated[float, "T at the end of the run; -1: the same throughout"] = -1.0
    distill_decay: Annotated[str, "linear or cosine: how alpha and T come to their ends"] = "cosine"
    feature_weight: Annotated[float, "of the distance between blocks of student and teacher; 0: off"] = 0.0
    feature_loss: Annotated[str, "mse or cosine: that distance"] = "cosine"
    feature_blocks: Annotated[str, "the student's blocks that are matched, such as 2,5; empty: all"] = ""
    qat_steps: Annotated[
        int, "last steps, whose products are rounded to 8 bits as int8 exports them; 0: none"
    ] = 0
    batch: Annotated[int, "images of one step, over all processes"]
    batch_eval: Annotated[int, "images per batch of the evaluation"]
    accum_steps: Annotated[
        int, "parts in which a step takes its batch, one after another, to need less memory; 1: all at once"
    ] = 1
    dtype: Annotated[
        str, "float32, or bfloat16: what models compute in; parameters, logits and losses are float32"
    ] = "float32"
    remat: Annotated[
        str,
        "what the backward pass computes anew, to need less memory: none; dots: all but products with weights; blocks: all",
    ] = "none"
    scan_blocks: Annotated[
        bool, "whether blocks that are alike are compiled once, as a loop: for deep models"
    ] = False
    total_steps: Annotated[int, "when training ends"]
    warmup_steps: Annotated[int, "of the learning rate, from 0 to base_lr"]
    optim: Annotated[
        str,
        "adamw; muon: kernels of all blocks along orthogonal directions, Adam for the rest; sgd with momentum 0.9; adafactor: "
        "factored second moments; lion, at a third to a tenth of AdamW's base_lr",
    ] = "adamw"
    base_lr: Annotated[float, "largest learning rate, reached at the end of the warm-up"]
    decay_type: Annotated[str, "of the learning rate after it: cosine or linear to 0, or rsqrt: 1/√step"] = (
        "cosine"
    )
    wd: Annotated[float, "decoupled decay of kernels, multiplied by the learning rate with every optimiser"]
    do: Annotated[float, "dropout rate"] = 0.0
    sd: Annotated[float, "stochastic depth rate of the last block"] = 0.0
    label_smoothing: Annotated[float, "share of each label that goes to all classes"] = 0.0
    grad_norm_clip: Annotated[float, "largest norm of the gradients"] = 1.0
    skip_sigmas: Annotated[
        float,
        "steps whose loss or gradient norm is so many standard deviations above the last 128 steps' are left out; 0: none but "
        "those that are not finite",
    ] = 0.0
    ema_decay: Annotated[
        float, "of the moving average of the weights, which evaluation and export take; 0: there is none"
    ] = 0.0
    eval_every: Annotated[int, "steps from one evaluation to the next"]
    checkpoint_every: Annotated[int, "steps from one checkpoint to the next"]
    keep_last: Annotated[int, "newest checkpoints that are kept"] = 2
    keep_best: Annotated[
        int,
        "checkpoints that are kept beside the newest: the best by validation top-1, of those that were evaluated",
    ] = 0
    log_every: Annotated[int, "steps from one line of metrics.jsonl to the next"] = 10
    workers: Annotated[int, "Grain worker processes; 0 reads in this one"] = 0

    @property
    def distils(self) -> bool:
        """Whether a teacher takes part."""
        return max(self.distill_weight, self.distill_weight_end, self.feature_weight) > 0

    @property
    def matched_blocks(self) -> tuple[int, ...]:
        """The blocks that `feature_blocks` names; () for all of them."""
        return tuple(int(part) for part in self.feature_blocks.split(",") if part)

    def check_learning(self, found: Problems) -> None:
        """Notes what is wrong with any of these keys by itself."""
        self._check_ranges(found)
        self._check_choices(found)

    def _check_ranges(self, found: Problems) -> None:
        found.check_at_least(
            1,
            batch=self.batch,
            batch_eval=self.batch_eval,
            accum_steps=self.accum_steps,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            keep_last=self.keep_last,
            log_every=self.log_every,
        )
        found.check_at_least(
            0,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            workers=self.workers,
            wd=self.wd,
            mixup=self.mixup,
            cutmix=self.cutmix,
            qat_steps=self.qat_steps,
            teacher_epochs=self.teacher_epochs,
            feature_weight=self.feature_weight,
            skip_sigmas=self.skip_sigmas,
            keep_best=self.keep_best,
        )
        found.check_above_0(
            base_lr=self.base_lr,
            grad_norm_clip=self.grad_norm_clip,
            distill_temperature=self.distill_temperature,
        )
        for name in ("do", "sd", "label_smoothing", "ema_decay"):
            found.check(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)")
        found.check(0 <= self.distill_weight <= 1, f"distill_weight={self.distill_weight} must be in [0, 1]")
        alpha, temperature = self.distill_weight_end, self.distill_temperature_end
        found.check(
            alpha == -1 or 0 <= alpha <= 1, f"distill_weight_end={alpha} must be in [0, 1], or -1: none"
        )
        fine = temperature == -1 or 0 < temperature < math.inf
        found.check(fine, f"distill_temperature_end={temperature} must be above 0, or -1: none")

    def _check_choices(self, found: Problems) -> None:
        for name, allowed in (
            ("aug", AUGMENTATIONS),
            ("dtype", DTYPES),
            ("remat", REMATS),
            ("optim", OPTIMISERS),
            ("decay_type", LR_DECAYS),
            ("distill_loss", DISTILL_LOSSES),
            ("distill_decay", DECAYS),
            ("feature_loss", FEATURE_LOSSES),
        ):
            value = getattr(self, name)
            found.check(value in allowed, f"{name}={value!r} must be one of {', '.join(allowed)}")
        found.check(
            re.fullmatch(r"(\d+,\d+(\.\d+)?)?", self.randaug) is not None,
            f"randaug={self.randaug!r} must be layers,magnitude such as 2,15, or empty",
        )
        blocks = re.fullmatch(r"(\d+(,\d+)*)?", self.feature_blocks)
        found.check(
            blocks is not None,
            f"feature_blocks={self.feature_blocks!r} must be numbers such as 2,5, or empty",
        )
