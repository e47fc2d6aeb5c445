"""Export of published weights: a bundle that is proven without a data set, int8 from pictures, a pair as two bundles."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import read_bundle
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from tests.support.small_families import PAIR
from tests.support.small_models import random_params
from trainer import description
from trainer.checkpoint import export_optimized
from trainer.export import job, subject
from trainer.export.__main__ import main
from trainer.models.build import bind
from trainer.weights.load import Weights
from trainer.weights.report import Report
from trainer.weights.save import save_npz

MODEL = description.require_vit(description.named("ViT-digits", (16, 16), 3, 10), "this test")
PARAMS = random_params(MODEL)
PAIR_T = random_params(PAIR)["t"][0]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    save_npz(path, MODEL, PARAMS)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def _export(npz: Path, output: Path, *more: str) -> dict[str, object]:
    return main(["--model=ViT-digits", f"--weights={npz}", f"--output={output}", "--threads=1", *more])


def test_a_file_of_weights_becomes_a_bundle_that_a_server_takes(npz: Path, tmp_path: Path) -> None:
    result = _export(npz, tmp_path / "models" / "digits" / "1")
    bundle = read_bundle(tmp_path / "models" / "digits" / "1")
    assert (result["stage"], result["validation_top1"]) == ("published", None)
    assert bundle.manifest.provenance.stage == "published"
    assert len(bundle.manifest.provenance.weights_hash) == 64
    images = bundle.golden_inputs["images"]
    live = np.asarray(bind(MODEL, PARAMS)(images))
    np.testing.assert_allclose(bundle.golden_outputs["logits"], live, atol=1e-4)


def test_int8_is_calibrated_on_the_pictures_that_are_given(npz: Path, pictures: Path, tmp_path: Path) -> None:
    asked = ("--precision=int8", "--calibration_examples=16", f"--images={pictures}", "--min_agreement=0.5")
    _export(npz, tmp_path / "models" / "digits" / "1", *asked)
    _export(npz, tmp_path / "models" / "digits" / "2", *asked, "--calibration_examples=512")  # all 24
    hashes = [
        read_bundle(tmp_path / "models" / "digits" / version).manifest.provenance.calibration_hash
        for version in ("1", "2")
    ]
    assert [len(one) for one in hashes] == [64, 64]
    assert hashes[0] != hashes[1]
    with pytest.raises(UserError, match="int8 ranges need real pictures"):
        _export(npz, tmp_path / "models" / "digits" / "3", *asked, "--images=")
    assert not (tmp_path / "models" / "digits" / "3").exists()


def test_another_resolution_resizes_the_positions(npz: Path, tmp_path: Path) -> None:
    _export(npz, tmp_path / "models" / "digits" / "1", "--image_size=24")
    (images,) = read_bundle(tmp_path / "models" / "digits" / "1").manifest.inputs
    assert list(images.shape) == [-1, 24, 24, 3]


def _pair(vocab: str) -> subject.Subject:
    spec = PreprocessSpec("L", 8, 8, (127.5,), (127.5,))
    weights = Weights(PAIR, random_params(PAIR), spec, (), "lit", "", Report())
    return subject.from_weights(weights, [], vocab=vocab)


def test_a_pair_becomes_two_bundles_with_vocabulary_and_scale(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[CLS]", "[UNK]", "a", "cat"]))
    request = job.Request(tmp_path / "models" / "pair" / "1", "fp32", 1, 0.9, 1)
    result = job.export(_pair(str(vocab)), request)
    image, text = (read_bundle(tmp_path / "models" / f"pair-{tower}" / "1") for tower in ("image", "text"))
    scale = float(np.exp(PAIR_T))
    assert [one.manifest.logit_scale for one in (image, text)] == pytest.approx([scale, scale])
    assert text.tokeniser is not None
    assert (text.tokeniser.vocab_file, text.preprocess, image.tokeniser) == ("vocab.txt", None, None)
    assert text.manifest.inputs[0].values_below == PAIR.text.vocab_size
    lengths = np.linalg.norm(image.golden_outputs["embeddings"], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    assert isinstance(result["bundles"], list)
    assert len(result["bundles"]) == 2


def test_a_pair_is_refused_whole_when_one_place_is_taken(tmp_path: Path) -> None:
    (tmp_path / "models" / "pair-text" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="pair-text/1 exists already"):
        job.export(_pair(""), job.Request(tmp_path / "models" / "pair" / "1", "fp32", 1, 0.9, 1))
    assert not (tmp_path / "models" / "pair-image").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoint=runs/x"], "exclude each other"),
        (["--min_top1=0.5"], "needs the labelled images"),
        (["--vocab=vocab.txt"], "reads no texts"),
        (["--images=nowhere.png"], "does not exist"),
        (["--sha256=" + "0" * 64], "SHA-256"),
        (["--model=R_Ti_16"], "plain ViT"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    npz: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _export(npz, tmp_path / "models" / "digits" / "1", *more)
    assert list(tmp_path.iterdir()) == []


def test_one_call_makes_a_repository_that_a_server_opens(npz: Path, tmp_path: Path) -> None:
    """As the article has it: export_optimized(model=, input_shape=, output_path=), with weights= for real ones."""
    written = [
        export_optimized(
            model=name, input_shape=(1, 16, 16, 3), output_path=tmp_path / "lite", weights=weights
        )
        for name, weights in (("ViT-digits", str(npz)), ("ViT-digits", ""))
    ]
    assert written == [tmp_path / "lite" / "ViT-digits" / version for version in ("1", "2")]
    stages = [read_bundle(path).manifest.provenance.stage for path in written]
    assert stages == ["published", "untrained"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "Tj"}, "unknown model 'Tj'"),
        ({"input_shape": (16, 16)}, "must be .batch, height, width, channels."),
        ({"input_shape": (1, 16, 16, 1)}, "has 1 channels, the weights are for 3"),
        ({"precision": "int4"}, "must be one of fp32, int8"),
    ],
)
def test_one_call_refuses_what_does_not_fit(
    npz: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    asked = {
        "model": "ViT-digits",
        "input_shape": (1, 16, 16, 3),
        "output_path": tmp_path / "lite",
        "weights": str(npz),
    }
    with pytest.raises(UserError, match=message):
        export_optimized(**{**asked, **changed})  # type: ignore[arg-type]
    assert not (tmp_path / "lite").exists()
