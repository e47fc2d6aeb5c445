"""The configuration of a training run, with the field's own names."""

import dataclasses
import re
from typing import Annotated, Any

from trainer.config.data import Data
from trainer.config.fields import Problems
from trainer.config.learning import Learning

CONTRASTIVE_LOSSES = ("softmax", "sigmoid")
DURATIONS = ("total", "warmup")  # each in one of the units
UNITS = ("steps", "epochs", "examples")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes in each slice of a pod; data=-1 takes the devices that the others leave.

    Several slices, which a slower network joins, are one more factor of the batch axis.
    """

    data: Annotated[int, "batch axis; -1 takes the devices that the others leave"] = -1
    fsdp: Annotated[int, "axis over which parameters and batch are cut"] = 1
    model: Annotated[int, "axis over which heads and neurons are cut"] = 1
    slices: Annotated[int, "slices of a pod, each with such a mesh; replicas of each other"] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The text tower of a pair that is trained on images with texts."""

    vocab: Annotated[str, "file of its vocabulary: BERT's .txt or SentencePiece's .model"] = ""
    vocab_size: Annotated[int, "entries that it has room for"] = 0
    max_tokens: Annotated[int, "that a text is cut and filled up to"] = 16
    width: Annotated[int, "channels of its residual stream"] = 192
    layers: Annotated[int, "its blocks"] = 12
    heads: Annotated[int, "in each block"] = 3
    mlp_dim: Annotated[int, "neurons in each block"] = 768


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Data, Learning):
    """One training run: from scratch, fine-tuning, or distillation when `distill_weight` or `feature_weight` is above 0.

    Raises:
      ConfigError: on construction, naming everything that is wrong.
    """

    seed: Annotated[int, "of weights, shuffling, augmentation and dropout"] = 0
    image_size: Annotated[int, "side in pixels of the square images"]
    model: Annotated[
        str, "a variant's name; also that of the pretrained file, but checkpoints know their own"
    ] = ""
    pretrained: Annotated[
        str, "first weights: a checkpoint, or a published .npz or .safetensors (path or URL)"
    ] = ""
    shape_of: Annotated[str, "path of a checkpoint: its shape, with fresh weights"] = ""
    teacher_weights: Annotated[
        str, "the teacher: a checkpoint, a bundle, or a published .npz or .safetensors (path or URL)"
    ] = ""
    teacher_model: Annotated[str, "the variant's name of a published teacher; our own know theirs"] = ""
    total_epochs: Annotated[float, "when training ends, in place of total_steps; 0: by steps"] = 0.0
    total_examples: Annotated[int, "likewise, in examples"] = 0
    warmup_epochs: Annotated[float, "of the learning rate, in place of warmup_steps; 0: by steps"] = 0.0
    warmup_examples: Annotated[int, "likewise, in examples"] = 0
    stall_after_s: Annotated[
        float,
        "seconds without the end of a step, after which the run ends with code 43 and all stacks; 0: never",
    ] = 900.0
    profile_steps: Annotated[
        str, "first,last step of a profile, such as 100,105, under WORKDIR/profile; empty: none"
    ] = ""
    compile_cache: Annotated[
        str,
        "folder of compiled steps, on storage that all processes share and nobody else may write; empty: compile anew",
    ] = ""
    text: Text = Text()
    contrastive_loss: Annotated[str, "of images with texts: softmax, or sigmoid"] = "softmax"
    lock_image: Annotated[bool, "whether the image tower of a pair stays as it began (LiT)"] = True
    mesh: MeshShape = MeshShape()

    def __post_init__(self) -> None:
        found = Problems()
        self.check_learning(found)
        found.check_at_least(1, image_size=self.image_size)
        self.check_data(found)
        found.check(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32)")
        self._check_parts(found)
        mesh, axes = self.mesh, f"mesh {self.mesh.data} x {self.mesh.fsdp} x {self.mesh.model}"
        fine = min(mesh.fsdp, mesh.model) >= 1 and (mesh.data >= 1 or mesh.data == -1)
        found.check(mesh.slices >= 1, f"mesh.slices={mesh.slices} must be at least 1")
        found.check(fine, f"{axes} (data, fsdp, model) must have positive axes (data may be -1: the rest)")
        found.refuse()

    def _check_parts(self, found: Problems) -> None:
        self._check_durations(found)
        found.check(
            self.contrastive_loss in CONTRASTIVE_LOSSES,
            f"contrastive_loss={self.contrastive_loss!r} must be one of {', '.join(CONTRASTIVE_LOSSES)}",
        )
        if self.pairs:
            self._check_pairs(found)
        found.check_at_least(0, stall_after_s=self.stall_after_s)
        found.check(
            re.fullmatch(r"(\d+,\d+)?", self.profile_steps) is not None,
            f"profile_steps={self.profile_steps!r} must be first,last such as 100,105, or empty",
        )
        both, any_of = self.pretrained and self.shape_of, self.model or self.pretrained or self.shape_of
        found.check(not both, "pretrained and shape_of exclude each other; set one of them")
        found.check(bool(any_of), "model is empty; name one, or set pretrained or shape_of to a checkpoint")
        distils, teacher = self.distils, bool(self.teacher_weights)
        found.check(
            teacher or not distils,
            f"{'distill_weight' if self.distill_weight > 0 else 'feature_weight or distill_weight_end'} is above 0 "
            "but teacher_weights names no checkpoint"
            + (f"; teacher_model={self.teacher_model} says only what it is of" if self.teacher_model else ""),
        )
        found.check(
            distils or not teacher, "teacher_weights is set but distill_weight is 0; set both or none"
        )
        found.check(
            distils or not self.teacher_model,
            f"teacher_model={self.teacher_model} is set but distill_weight is 0; set both (and teacher_weights) or none",
        )
        every, evaluated = self.checkpoint_every, self.eval_every
        found.check(
            not self.keep_best or every % max(1, evaluated) == 0,
            f"keep_best={self.keep_best} needs checkpoints that are evaluated: checkpoint_every={every} must be a multiple of "
            f"eval_every={evaluated}",
        )
        self._check_cache(found)

    @property
    def profiled(self) -> range:
        """The steps that are profiled."""
        first, _, last = self.profile_steps.partition(",")
        return range(int(first), int(last) + 1) if first else range(0)

    @property
    def pairs(self) -> bool:
        """Whether images come with texts in place of classes."""
        return self.dataset.startswith("pairs:")

    def _check_pairs(self, found: Problems) -> None:
        sizes = {f"text.{name}": getattr(self.text, name) for name in ("width", "layers", "heads", "mlp_dim")}
        found.check_at_least(1, **sizes, **{"text.max_tokens": self.text.max_tokens})
        found.check(bool(self.text.vocab), "images with texts need text.vocab, the file of a vocabulary")
        found.check(
            self.text.width % max(1, self.text.heads) == 0,
            f"text.heads={self.text.heads} does not divide text.width={self.text.width}",
        )
        for name, off in (
            *(("distill_weight", 0.0), ("mixup", 0.0), ("cutmix", 0.0), ("label_smoothing", 0.0)),
            *(
                ("accum_steps", 1),
                ("qat_steps", 0),
                ("do", 0.0),
                ("sd", 0.0),
                ("remat", "none"),
                ("scan_blocks", False),
            ),
        ):
            found.check(
                getattr(self, name) == off,
                f"{name}={getattr(self, name)} is for classes; with images and texts leave it at {off}",
            )

    def in_steps(self, examples: int) -> "Experiment":
        """The same training with all durations in steps, of a data set of so many training examples.

        Raises:
          ConfigError: when they do not go together.
        """

        def steps(name: str) -> int:
            seen = getattr(self, f"{name}_epochs") * examples or getattr(self, f"{name}_examples")
            return max(1, round(seen / self.batch)) if seen else getattr(self, f"{name}_steps")

        changed: dict[str, Any] = {f"{name}_{unit}": 0 for name in DURATIONS for unit in UNITS}
        changed |= {f"{name}_steps": steps(name) for name in DURATIONS}
        return dataclasses.replace(self, **changed)

    def _check_durations(self, found: Problems) -> None:
        for name, fewest in zip(DURATIONS, (1, 0), strict=True):
            given = {f"{name}_{unit}": getattr(self, f"{name}_{unit}") for unit in UNITS}
            found.check_at_least(0, **given)
            stated = [f"{key}={value}" for key, value in given.items() if value]
            listed = " and ".join(stated) or "none"
            fine = fewest <= len(stated) <= 1
            found.check(
                fine,
                f"{'exactly' if fewest else 'at most'} one of {', '.join(given)} must be set, not {listed}",
            )
        warmup, total, qat = self.warmup_steps, self.total_steps, self.qat_steps
        if total:
            found.check(warmup < total, f"warmup_steps={warmup} is not below total_steps={total}; lower it")
            found.check(qat <= total, f"qat_steps={qat} is above total_steps={total}; lower it")

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
            (
                not self.mixup and not self.cutmix,
                "mixup or cutmix and teacher_cache exclude each other: mixed images never come again",
            ),
            (
                not self.feature_weight,
                "feature_weight and teacher_cache exclude each other: only logits are stored",
            ),
        ):
            found.check(fine, problem)
