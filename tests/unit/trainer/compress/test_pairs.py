"""The image tower of a LiT pair: cut and repaired beside a text tower that stays, saved as a pair, and exported as one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import preprocess
from serving.bundle import read_bundle
from serving.command import UserError
from tests.support.small_families import CLS, PAIR, TRANSFORMER
from tests.support.small_models import DIGITS_SPEC, logits, random_params, smooth_images
from trainer import checkpoint, config
from trainer.compress import width
from trainer.compress.__main__ import main
from trainer.compress.given import open_given
from trainer.compress.origin import Origin
from trainer.compress.pairs import Pair
from trainer.compress.repair import Seen
from trainer.compress.validation import found_again
from trainer.data.datasets import open_dataset
from trainer.description import TwoTowers, macs, param_count
from trainer.evaluate import main as evaluate
from trainer.export.__main__ import main as export
from trainer.models.build import Params, bind, flatten

Array = np.ndarray[Any, np.dtype[Any]]

# An image tower without a head (its stream is the embedding), and one with.
BARE = PAIR
HEADED = TwoTowers(dataclasses.replace(CLS, num_classes=12), TRANSFORMER)
QUICK = (
    "--config=configs/compress.py",
    "--config.calibration.examples=256",
    "--config.calibration.batch=64",
    "--config.until=cut",
    "--config.round_mlp=8",
    "--config.round_head_dim=4",
    "--config.round_width=4",
)


def _save(folder: Path, pair: TwoTowers) -> Params:
    params = random_params(pair)
    meta = {"stage": "imported", "dataset": "digits", "fingerprint": "", "next_example": 0}
    meta |= dict.fromkeys(("config_text", "config_hash", "teacher_hash", "calibration_hash", "data_dir"), "")
    checkpoint.save_model(folder, checkpoint.Card(pair, DIGITS_SPEC, (), meta), params)
    return params


@pytest.fixture(scope="module", params=[BARE, HEADED], ids=["without a head", "with a head"])
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path, Any]:
    """A pair's parameters, the workdir of its image tower at 60 % of the multiply-accumulates, and the command's result."""
    teacher, workdir = tmp_path_factory.mktemp("pair"), tmp_path_factory.mktemp("small")
    params = _save(teacher, request.param)
    arguments = [f"--checkpoint={teacher}", f"--workdir={workdir}", *QUICK, "--config.budget.macs=0.6"]
    return params, workdir, (request.param, main(arguments))


def _embeddings(tower: Any, params: Params) -> Array:
    data = open_dataset("digits").validation
    said = logits(tower, params, preprocess.normalise(data.images, DIGITS_SPEC))
    return np.asarray(said / np.linalg.norm(said, axis=1, keepdims=True))


def test_the_image_tower_is_cut_to_the_budget_and_the_text_tower_stays(cut: tuple[Params, Path, Any]) -> None:
    params, workdir, (pair, result) = cut
    loaded = checkpoint.load(workdir)
    assert isinstance(loaded.description, TwoTowers)
    tower, _ = Pair(pair, params).tower()
    assert macs(loaded.description.image) == result["macs"]["actual"] <= 0.6 * macs(tower)
    assert loaded.description.text == pair.text
    for name, array in flatten({"text": params["text"], "t": params["t"]}).items():
        np.testing.assert_array_equal(flatten(loaded.params)[name], array)


def test_its_embeddings_stay_nearer_to_the_teachers_than_without_repair_and_are_worth_what_was_reported(
    cut: tuple[Params, Path, Any],
) -> None:
    params, workdir, (pair, result) = cut
    loaded = checkpoint.load(workdir)
    assert isinstance(loaded.description, TwoTowers)
    teacher = _embeddings(*Pair(pair, params).tower())
    student = _embeddings(loaded.description.image, loaded.params["image"])
    told = result["validation_top1"]
    assert told["teacher"] == 1.0
    assert told["cut and repaired"] == found_again(student, teacher)
    assert np.mean(np.sum(student * teacher, axis=1)) > 0.8


def test_a_width_is_cut_by_the_directions_that_it_was_judged_by(tmp_path: Path) -> None:
    """Those of the stand-in: a tower's own answers are embeddings, which are no predictions."""
    params = _save(tmp_path / "pair", HEADED)
    arguments = [f"--checkpoint={tmp_path / 'pair'}", f"--workdir={tmp_path / 'small'}", *QUICK]
    main([*arguments, "--config.budget.params=0", "--config.shape.hidden_size=8"])
    _, asked, _ = config.split_config_args(QUICK)
    given = open_given(config.compression("configs/compress.py", asked), Origin(str(tmp_path / "pair")))
    teacher = given.teacher
    assert not np.array_equal(teacher.params["head"]["kernel"], params["image"]["head"]["kernel"])
    judged_by = Seen(teacher.model, teacher.params, teacher.images, teacher.how.batch, keep=False).directions
    found = np.load(tmp_path / "small" / width.FILE)["projection"]
    np.testing.assert_allclose(found, width.projection(judged_by, 8), atol=1e-5)


def test_a_tower_without_a_head_gets_one_that_changes_nothing() -> None:
    params, images = random_params(BARE), smooth_images(BARE.image, 16)
    tower, own = Pair(BARE, params).tower()
    bare = np.asarray(bind(BARE.image, params["image"])(images))
    np.testing.assert_allclose(logits(tower, own, images), bare, atol=1e-4)
    assert param_count(tower) == param_count(BARE.image) + 16 * 16 + 16


def test_what_is_cut_is_exported_as_a_pair(cut: tuple[Params, Path, Any], tmp_path: Path) -> None:
    _, workdir, _ = cut
    export([f"--checkpoint={workdir}", f"--output={tmp_path / 'models' / 'small' / '1'}"])
    image, text = (read_bundle(tmp_path / "models" / f"small-{tower}" / "1") for tower in ("image", "text"))
    assert image.golden_outputs["embeddings"].shape[1] == text.golden_outputs["embeddings"].shape[1]


@pytest.mark.parametrize("changes", ["until=export", "calibration.labelled=True"])
def test_what_trains_classifiers_is_refused_for_a_pair_before_anything_is_written(
    tmp_path: Path, changes: str
) -> None:
    _save(tmp_path / "pair", HEADED)
    arguments = [f"--checkpoint={tmp_path / 'pair'}", f"--workdir={tmp_path / 'small'}", *QUICK]
    with pytest.raises(
        UserError, match="this is a pair of towers, whose image tower is only cut and repaired"
    ):
        main([*arguments, "--config.budget.macs=0.6", f"--config.{changes}"])
    assert not (tmp_path / "small" / "compression.json").exists()


def test_commands_for_classifiers_refuse_a_pair_in_one_line(tmp_path: Path) -> None:
    _save(tmp_path / "pair", HEADED)
    with pytest.raises(UserError, match="of kind 'two_towers' without a classifier"):
        evaluate([f"--checkpoint={tmp_path / 'pair'}"])
