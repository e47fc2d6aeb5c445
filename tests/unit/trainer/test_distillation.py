"""A teacher in the training step: whether it fits, what its stored answers are, and which of its blocks are matched."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from tests.support import small_steps, trainings
from tests.support.small_families import CLS, DEIT
from tests.support.small_models import (
    DIGITS,
    DIGITS_SPEC,
    SMALL,
    logits,
    random_params,
    save_digits,
)
from trainer import checkpoint, config, features, objectives, teacher
from trainer.classifying import Classifying
from trainer.compress.__main__ import main as compress
from trainer.data.augment import Augment, RepeatedAugment
from trainer.data.datasets import open_dataset
from trainer.description import ViT
from trainer.distributed.mesh import make_mesh
from trainer.models.build import Params
from trainer.step import normalise
from trainer.teacher import Teacher
from trainer.train import train

Array = np.ndarray[Any, np.dtype[Any]]
_TWO_STEPS = {"image_size": 8, "total_steps": 2, "warmup_steps": 1, "batch": 32, "log_every": 1}


def _experiment(recipe: str = "student", **values: object) -> config.Experiment:
    overrides = [(name, str(value)) for name, value in (_TWO_STEPS | values).items()]
    return config.experiment(f"configs/digits.py:{recipe}", overrides)


def _teacher(model: ViT = SMALL, params: Params | None = None, **changes: Any) -> Teacher:
    made = Teacher(model, params or random_params(model), DIGITS_SPEC, DIGITS, "of the teacher")
    return dataclasses.replace(made, **changes)


def _losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in trainings.record(workdir) if "loss" in line]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"preprocess": dataclasses.replace(DIGITS_SPEC, mean=(0.0,))},
            r"must see the same view of an image, and differ, the teacher.s named first, in mean \(0.0,\) and \(127.5,\)",
        ),
        (
            {"description": dataclasses.replace(SMALL, num_classes=7)},
            "the teacher knows 7 classes, the student 10",
        ),
        ({"labels": ("cat", *DIGITS[1:])}, "the teacher knows the classes cat, 1, 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_naming_both_sides(changes: dict[str, Any], said: str) -> None:
    teacher.check_teacher(_teacher(), DIGITS_SPEC, DIGITS, SMALL)
    with pytest.raises(UserError, match=said):
        teacher.check_teacher(_teacher(**changes), DIGITS_SPEC, DIGITS, SMALL)


def test_a_teacher_without_names_is_known_by_its_number_of_classes() -> None:
    teacher.check_teacher(_teacher(labels=()), DIGITS_SPEC, DIGITS, SMALL)


def test_a_teacher_whose_head_was_never_trained_is_refused(tmp_path: Path) -> None:
    params = random_params(SMALL)
    params["head"] = {name: np.zeros_like(value) for name, value in params["head"].items()}
    save_digits(tmp_path, params=params)
    with pytest.raises(UserError, match="is all zeros, as it was published; train it before it teaches"):
        teacher.load_teacher(str(tmp_path), "", 8)


def test_views_come_again_after_so_many_epochs_and_differ_within_them() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    views = RepeatedAugment(Augment("shift", (8, 8)), seed=3, epochs=2, examples=10)

    def seen(epoch: int, seed_views: RepeatedAugment = views) -> Array:
        return np.asarray(seed_views(10 * epoch + 4, {"image": image, "index": 4})["image"])

    many = [seen(epoch) for epoch in range(8)]
    for epoch, view in enumerate(many):
        np.testing.assert_array_equal(view, many[epoch % 2])
    others = [RepeatedAugment(Augment("shift", (8, 8)), seed, 1, 10).view(image, 4, 0) for seed in range(8)]
    assert len({view.tobytes() for view in others}) > 1


def test_stored_answers_are_what_the_teacher_says_of_each_view(tmp_path: Path) -> None:
    data, own = open_dataset("digits"), _teacher()
    asked = _experiment(
        pretrained=tmp_path, teacher_weights=tmp_path, teacher_epochs=1, teacher_cache=tmp_path / "answers"
    )
    cache = teacher.stored_answers(asked, own, data, DIGITS_SPEC, make_mesh(asked.mesh))
    places = np.array([0, 5, 31])
    views = RepeatedAugment(Augment(asked.aug, (8, 8)), asked.seed, 1, len(data.train))
    images = np.stack([views.view(data.train.images[place], int(place), 0) for place in places])
    pixels = (images.astype(np.float32) - 127.5) / 127.5
    found = cache.read(places, np.zeros(3, int))
    assert set(found) == {"taught_logits"}
    np.testing.assert_allclose(found["taught_logits"], logits(SMALL, own.params, pixels), atol=1e-4)


@pytest.mark.parametrize("mixed", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
def test_teacher_and_student_see_the_same_mixed_view(mixed: dict[str, float]) -> None:
    """Function matching: who is its own teacher has nothing to learn of any view, and much of another one than its own."""
    experiment = _experiment(
        distill_weight=1.0, distill_temperature=1.0, pretrained="p", teacher_weights="t", **mixed
    )
    objective = objectives.distillation(lambda _: 1.0, lambda _: 1.0, 0.0, objectives.soft)
    task = Classifying(experiment, SMALL, DIGITS_SPEC, objective, SMALL, make_mesh(experiment.mesh))
    params, batch = random_params(SMALL), small_steps.batch(size=16)
    of_unmixed = {"taught_logits": logits(SMALL, params, normalise(batch["image"], DIGITS_SPEC))}
    same, apart = [], []
    for step in map(jnp.asarray, range(4)):  # some mix hardly anything
        seen = task.seen(batch, step)
        same.append(float(task.loss(params, seen, None, step, params)[0]))
        apart.append(float(task.loss(params, {**seen, **of_unmixed}, None, step, params)[0]))
    assert same == pytest.approx([0] * 4, abs=1e-5)
    assert max(apart) > 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and what a cut left of it in width, depth and heads."""
    folder = tmp_path_factory.mktemp("distillation")
    save_digits(folder / "teacher", params=random_params(SMALL, seed=1))
    compress(
        [
            f"--checkpoint={folder / 'teacher'}",
            f"--workdir={folder / 'cut'}",
            "--config=configs/compress.py",
            "--config.until=cut",
            "--config.calibration.examples=256",
            "--config.calibration.batch=64",
            "--config.shape.hidden_size=12",
            "--config.shape.num_layers=1",
        ]
    )
    return folder


def test_a_run_with_stored_answers_is_the_run_that_asks_the_teacher(folder: Path, tmp_path: Path) -> None:
    both = {"pretrained": folder / "cut", "teacher_weights": folder / "teacher", "teacher_epochs": 1}
    train(_experiment(**both), tmp_path / "live")
    train(_experiment(**both, teacher_cache=tmp_path / "answers"), tmp_path / "stored")
    assert len(_losses(tmp_path / "live")) == 2
    assert _losses(tmp_path / "stored") == pytest.approx(_losses(tmp_path / "live"), rel=1e-4)


def test_features_are_matched_by_the_plan_and_through_the_rotation_of_the_cut(folder: Path) -> None:
    card = checkpoint.load_card(folder / "cut")
    own = teacher.load_teacher(str(folder / "teacher"), "", 8)
    found = features.matching(
        _experiment(pretrained=folder / "cut", teacher_weights=folder / "teacher"), card.classifier, own
    )
    ((student, source),) = found.pairs
    assert (student, source in (0, 1)) == (0, True)
    assert found.to_student is not None
    assert found.to_student.shape == (16, 12)
    # Half of what says where a stream of 16 channels goes among 12, 11 of them free (tokens stay centred).
    np.testing.assert_allclose(np.linalg.svd(found.to_student)[1][:11], 1, atol=1e-5)


def test_a_run_that_matches_features_starts_nearer_than_their_share_of_the_loss_alone(
    folder: Path, tmp_path: Path
) -> None:
    both = {"pretrained": folder / "cut", "teacher_weights": folder / "teacher"}
    train(_experiment(**both), tmp_path / "plain")
    train(_experiment(**both, feature_weight=1.0, feature_loss="cosine"), tmp_path / "matched")
    added = _losses(tmp_path / "matched")[0] - _losses(tmp_path / "plain")[0]
    assert (
        0 < added < 0.5
    )  # 1 − cosine of streams that a repair brought near; without the rotation it is about 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feature_blocks": "1"}, r"feature_blocks='1' names block 1; the student's are 0 to 0"),
        ({"pretrained": "elsewhere"}, "the teacher has 2 blocks of width 16, the student 1 of width 12"),
    ],
)
def test_blocks_that_cannot_be_matched_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    card = checkpoint.load_card(folder / "cut")
    own = teacher.load_teacher(str(folder / "teacher"), "", 8)
    asked = dataclasses.replace(
        _experiment(pretrained=folder / "cut", teacher_weights=folder / "teacher"), **changes
    )
    with pytest.raises(UserError, match=said):
        features.matching(asked, card.classifier, own)


def test_features_of_another_teacher_than_the_one_that_was_cut_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    save_digits(tmp_path, params=random_params(SMALL, seed=2))
    other = teacher.load_teacher(str(tmp_path), "", 8)
    card = checkpoint.load_card(folder / "cut")
    with pytest.raises(UserError, match="features are matched with the model that was cut"):
        features.matching(
            _experiment(pretrained=folder / "cut", teacher_weights=folder / "teacher"), card.classifier, other
        )


def test_a_teacher_with_another_number_of_tokens_matches_no_features(folder: Path) -> None:
    card = checkpoint.load_card(folder / "cut")
    with pytest.raises(UserError, match="the teacher has 5 tokens, the student 4"):
        features.matching(
            _experiment(pretrained=folder / "cut", teacher_weights=folder / "teacher"),
            card.classifier,
            _teacher(CLS),
        )


def test_a_student_with_a_token_for_its_teacher_learns_with_both_heads(tmp_path: Path) -> None:
    save_digits(tmp_path / "student", DEIT)
    save_digits(tmp_path / "teacher", params=random_params(SMALL, seed=1))
    train(
        _experiment(
            pretrained=tmp_path / "student", teacher_weights=tmp_path / "teacher", distill_loss="token"
        ),
        tmp_path / "run",
    )
    before, after = (checkpoint.load(tmp_path / name).params for name in ("student", "run"))
    for head in ("head", "head_dist"):
        assert np.abs(before[head]["kernel"] - after[head]["kernel"]).max() > 1e-6
