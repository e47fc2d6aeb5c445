"""Where training starts: published weights at another size and for other classes, checkpoints whose head may stay."""

from pathlib import Path

import numpy as np
import pytest

from serving.command import UserError
from tests.support import published_files
from tests.support.small_models import DIGITS, random_params, save_digits
from trainer import config, description, parts
from trainer.description import Block, ViT
from trainer.models.build import check_params
from trainer.start import start_from
from trainer.weights.save import save_npz

MODEL = description.require_vit(description.named("ViT-digits", (16, 16), 3, 7), "this test")
PARAMS = random_params(MODEL)
OWN = ViT((8, 8), 1, 4, 16, (Block(2, 8, 8, 32),), 10, "gap")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    save_npz(path, MODEL, PARAMS)
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    save_digits(folder, OWN)
    return folder


def test_published_weights_start_with_a_new_head_at_the_asked_size(npz: Path) -> None:
    start = start_from(str(npz), "ViT-digits", 24, DIGITS)
    assert start.description == description.named("ViT-digits", (24, 24), 3, 10)
    assert not start.params["head"]["kernel"].any()
    np.testing.assert_array_equal(start.params["patch"]["kernel"], PARAMS["patch"]["kernel"])
    assert start.params["pos"].shape == (1, 36, 64)
    # As the original prepares images, in colours although the digits are grey.
    spec = start.preprocess
    assert (spec.height, spec.width, spec.color, spec.antialias) == (24, 24, "RGB", False)


def test_a_checkpoint_keeps_its_head_for_its_own_classes_alone(own: Path) -> None:
    same, others = (start_from(str(own), "", 8, names) for names in (DIGITS, tuple("abcdefghij")))
    assert same.params["head"]["kernel"].any()
    assert not others.params["head"]["kernel"].any()
    assert same.weights_hash != others.weights_hash


def test_a_checkpoint_starts_at_another_size_too(own: Path) -> None:
    start = start_from(str(own), "", 12, DIGITS)
    assert start.description.image_size == (12, 12)
    assert start.params["pos"].shape == (1, 9, 16)
    assert start.params["head"]["kernel"].any()


@pytest.mark.parametrize(("name", "bert"), [("Toypair", False), ("Toypairbert", True)])
def test_a_pair_starts_as_its_image_tower_with_a_classifier(
    name: str, bert: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without a head of its own, which leads into embeddings and goes."""
    published_files.register(monkeypatch.setitem)
    stored = published_files.pair_npz(bert)
    np.savez(tmp_path / "pair.npz", **stored)  # type: ignore[arg-type]
    start = start_from(str(tmp_path / "pair.npz"), name, 24, DIGITS)
    model = start.description
    assert (model.kind, model.image_size, model.num_classes) == ("vit", (24, 24), 10)
    np.testing.assert_array_equal(start.params["patch"]["kernel"], stored["img/embedding/kernel"])
    check_params(model, start.params, "the start")
    assert not start.params["head"]["kernel"].any()
    assert start.preprocess.rounding == "down"


def test_a_run_assembled_from_published_weights_prepares_images_as_their_family_does(npz: Path) -> None:
    asked = [("pretrained", str(npz)), ("model", "ViT-digits"), ("image_size", "16")]
    assembled = parts.assemble(config.experiment("configs/finetune.py:digits", asked))
    assert assembled.card.preprocess.color == "RGB"
    assert assembled.card.labels == DIGITS
    assert assembled.pretrained is not None
    assert len(assembled.card.meta["pretrained_hash"]) == 64


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("", 16, "does not say which model"),
        ("Tj_16", 16, "nearest is 'ViT-Ti_16'"),
        ("R_Ti_16", 64, "plain ViT"),
        ("Ti_16", 64, "shape"),
        ("ViT-digits", 3, "smaller than one patch"),
    ],
)
def test_weights_that_do_not_fit_are_refused(npz: Path, model: str, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start_from(str(npz), model, size, DIGITS)


def test_no_weights_at_a_path_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz"):
        start_from(str(tmp_path / "none.npz"), "Ti_16", 64, DIGITS)
