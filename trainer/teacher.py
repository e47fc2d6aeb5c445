"""The teacher of a distillation: its weights of any origin, whether they fit the student, and its answers stored for later runs."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from serving.command import UserError, progress
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, step
from trainer.cached_logits import CachedLogits, Key, create
from trainer.config import Experiment
from trainer.data.augment import Augment, RepeatedAugment
from trainer.data.global_batch import input_share, to_global
from trainer.data.pipeline import Fitted, Whole, seen_by
from trainer.data.source import Array, Dataset
from trainer.description import Classifier, require_classifier
from trainer.distributed import rules
from trainer.distributed.holding import hold_for_all
from trainer.evaluation import few
from trainer.models.build import Params, flatten
from trainer.weights import asked


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that is asked and never changed; `params` are on the host, `weights_hash` is their sha256."""

    description: Classifier
    params: Params
    preprocess: PreprocessSpec
    labels: tuple[str, ...]  # () where nobody wrote them down
    weights_hash: str


def load_teacher(path: str, model: str, image_size: int) -> Teacher:
    """The weights at `path`: a checkpoint, a bundle, or a published file of the named `model`, taken to this size.

    Raises:
      UserError: for weights that are not there, cannot be read, or say the same of every image.
    """
    if checkpoint.steps(Path(path)):
        own = checkpoint.load(path)
        loaded = Teacher(own.classifier, own.params, own.preprocess, own.labels, own.meta["weights_hash"])
    else:
        loaded = _published(path, model, image_size)
    heads = [array for name, array in flatten(loaded.params).items() if name.startswith("head")]
    if loaded.description.num_classes and not any(np.any(array) for array in heads):
        raise UserError(
            f"the head of the teacher {path} is all zeros, as it was published; train it before it teaches"
        )
    return loaded


def _published(path: str, model: str, image_size: int) -> Teacher:
    weights = asked.load(path, model, image_size=(image_size, image_size))
    described = require_classifier(weights.description, "a teacher")
    preprocess = weights.prepared(f"the teacher {path}", (image_size, image_size))
    digest = checkpoint.weights_hash(weights.params)
    return Teacher(described, weights.params, preprocess, weights.labels, digest)


def check_teacher(
    teacher: Teacher, spec: PreprocessSpec, class_names: tuple[str, ...], student: Classifier
) -> None:
    """Refuses a teacher that sees images otherwise than the student, or knows other classes.

    Raises:
      UserError: naming both sides.
    """
    if teacher.preprocess != spec:
        seen, sees = dataclasses.asdict(teacher.preprocess), dataclasses.asdict(spec)
        differs = "; ".join(
            f"{name} {seen[name]} and {sees[name]}" for name in seen if seen[name] != sees[name]
        )
        raise UserError(
            f"teacher and student must see the same view of an image, and differ, the teacher's named first, in {differs}"
        )
    knows, learns = teacher.description.num_classes, student.num_classes
    if knows != learns:
        raise UserError(f"the teacher knows {knows} classes, the student {learns}; they must agree")
    if teacher.labels not in ((), class_names):
        known, asked_for = few(teacher.labels), few(class_names)
        raise UserError(
            f"the teacher knows the classes {known}, the data set has {asked_for}; they must agree"
        )


def stored_answers(
    experiment: Experiment,
    teacher: Teacher,
    dataset: Dataset,
    spec: PreprocessSpec,
    mesh: Mesh,
    alive: Callable[[], None] = lambda: None,
) -> CachedLogits:
    """What `teacher` says of every view that the run sees, from `experiment.teacher_cache`; what lacks there is asked for first.

    Every process calls this. Filling goes on where it was interrupted; `alive` is called after each batch.

    Raises:
      UserError: when the folder holds answers of another kind, or somebody else is filling it.
    """
    folder, images = Path(experiment.teacher_cache), seen_by(experiment.aug, dataset.train, spec)
    augment = Augment(experiment.aug, (spec.height, spec.width), experiment.randaug)
    views = RepeatedAugment(augment, experiment.seed, experiment.teacher_epochs, len(images))
    key = Key(
        teacher=teacher.weights_hash,
        data=dataset.fingerprint,
        examples=len(images),
        classes=teacher.description.num_classes,
        preprocessing=json.dumps(spec.to_json(), sort_keys=True),
        aug=f"{experiment.aug} {experiment.randaug}".strip(),
        seed=experiment.seed,
        teacher_epochs=experiment.teacher_epochs,
        views=_digest(views, images, experiment.teacher_epochs),
    )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        create(folder, key)
    _wait_for_all("made")
    cache = CachedLogits(folder, key)
    epochs = min(
        experiment.teacher_epochs, math.ceil(experiment.total_steps * experiment.batch / len(images))
    )
    if cache.filled < epochs * len(images):
        with hold_for_all(folder, "filling the teacher's answers"):
            _fill(
                cache, epochs * len(images), teacher, views, images, spec, experiment.batch_eval, mesh, alive
            )
        _wait_for_all("filled")
        cache = CachedLogits(folder, key)
    return cache


def _digest(views: RepeatedAugment, images: Whole | Fitted, epochs: int) -> str:
    """sha256 of some views: it changes with augmentation, with sizing, and with how numpy draws."""
    digest = hashlib.sha256()
    for index in range(min(len(images), 32)):
        for epoch in {0, epochs - 1}:
            digest.update(views.view(images.image(index), index, epoch).tobytes())
    return digest.hexdigest()


def _fill(
    cache: CachedLogits,
    total: int,
    teacher: Teacher,
    views: RepeatedAugment,
    images: Whole | Fitted,
    spec: PreprocessSpec,
    batch: int,
    mesh: Mesh,
    alive: Callable[[], None],
) -> None:
    ask, params = step.make_answer_step(teacher.description, spec, mesh), rules.place(teacher.params, mesh)
    share, shares = input_share(mesh)
    each, first = batch // shares, cache.filled
    with progress(total, "teacher's answers", first) as bar:
        for start in range(first, total, batch):
            places = np.arange(share * each, (share + 1) * each, dtype=np.int32)
            rows = np.minimum(start + places, total - 1)  # the last batch is padded with its last row
            seen = [_view(views, images, int(row)) for row in rows]
            answers = jax.device_get(ask(params, to_global({"image": np.stack(seen), "row": places}, mesh)))
            wanted = min(batch, total - start)
            logits = answers["logits"][np.argsort(answers["row"])][:wanted]
            if jax.process_index() == 0:
                cache.write(np.arange(start, start + wanted), logits)
            bar.advance(wanted)
            alive()


def _view(views: RepeatedAugment, images: Whole | Fitted, row: int) -> Array:
    epoch, index = divmod(row, len(images))
    return views.view(images.image(index), index, epoch)


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"teacher's answers {what}")
