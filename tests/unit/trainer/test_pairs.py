"""Images with texts: what is read, what is learnt, and what a pair then knows."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from serving.tokenise import spec_of
from tests.support import captioned, trainings
from tests.support.small_models import SMALL, random_params, save_digits
from tools.convert import main as convert
from trainer import checkpoint, config, contrasting, zero_shot
from trainer.data.datasets import open_dataset, open_pairs
from trainer.description import TwoTowers
from trainer.embedding import classified, recalls
from trainer.export.__main__ import main as export
from trainer.models.build import flatten
from trainer.train import train

COLOURS = dataclasses.replace(SMALL, channels=3, width=32)
SPEC = PreprocessSpec("RGB", 8, 8, (127.5,) * 3, (127.5,) * 3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl, vocab.txt and an image tower of random weights in `image`."""
    folder = tmp_path_factory.mktemp("pairs")
    captioned.write_pairs(folder)
    save_digits(folder / "image", COLOURS, random_params(COLOURS), spec=SPEC)
    return folder


def experiment(pairs: Path, **values: object) -> config.Experiment:
    """Some steps of a small pair."""
    given = {
        "dataset": f"pairs:{pairs / 'pairs.jsonl'}",
        "text.vocab": pairs / "vocab.txt",
        "text.width": 16,
        "text.layers": 1,
        "text.heads": 2,
        "text.mlp_dim": 32,
        "text.max_tokens": 8,
        "pretrained": pairs / "image",
        "image_size": 8,
        "batch": 48,
        "batch_eval": 20,
        "total_steps": 3,
        "warmup_steps": 1,
        "base_lr": 0.01,
        "log_every": 1,
        **values,
    }
    return config.experiment("configs/lit.py", [(name, str(value)) for name, value in given.items()])


def test_texts_are_tokens_and_splits_are_disjoint(pairs: Path) -> None:
    data = open_pairs(f"pairs:{pairs / 'pairs.jsonl'}", spec_of(pairs / "vocab.txt", 8), pairs / "vocab.txt")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [480, 60, 60]
    names = [split.images.reader.paths for split in (data.train, data.validation, data.test)]  # type: ignore[attr-defined]
    assert len(set().union(*names)) == 600
    words = (pairs / "vocab.txt").read_text().splitlines()
    assert words[data.test.labels[0, 0]] == "[CLS]"
    assert words[1] not in [words[token] for token in data.test.labels.ravel()]  # all is known


def test_shards_hold_the_same_pairs(pairs: Path, tmp_path: Path) -> None:
    convert([f"--dataset=pairs:{pairs / 'pairs.jsonl'}", f"--output={tmp_path / 'shards'}", "--shards=2"])
    vocab, name = pairs / "vocab.txt", f"pairs:{tmp_path}/shards/*.array_record"
    ours = open_pairs(name, spec_of(vocab, 8), vocab)
    theirs = open_pairs(f"pairs:{pairs / 'pairs.jsonl'}", spec_of(vocab, 8), vocab)
    for one, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images[5], other.images[5])
    train(experiment(pairs, dataset=name), tmp_path / "run")
    with pytest.raises(UserError, match="are images with texts; ask for pairs:"):
        open_dataset(name.replace("pairs:", "array_record:"))
    convert(["--dataset=digits", f"--output={tmp_path / 'digits'}"])
    with pytest.raises(UserError, match="are images of 10 classes; ask for array_record:"):
        open_pairs(f"pairs:{tmp_path}/digits/*.array_record", spec_of(vocab, 8), vocab)


def test_a_picture_that_is_not_there_is_named_or_left_out(pairs: Path, tmp_path: Path) -> None:
    lines = (pairs / "pairs.jsonl").read_text().replace('"0007.png"', '"nowhere.png"')
    (tmp_path / "pairs.jsonl").write_text(lines)
    for picture in pairs.glob("*.png"):
        (tmp_path / picture.name).symlink_to(picture)
    vocab = pairs / "vocab.txt"
    name, tokens = f"pairs:{tmp_path / 'pairs.jsonl'}", spec_of(vocab, 8)
    with pytest.raises(UserError, match=r"1 of \d+ images are bad: .*nowhere.png .*No such file"):
        open_pairs(name, tokens, vocab)
    data = open_pairs(name, tokens, vocab, "skip")
    assert sum(map(len, (data.train, data.validation, data.test))) == 599


def test_a_locked_tower_stays_to_the_bit_and_the_text_tower_learns(pairs: Path, tmp_path: Path) -> None:
    result = train(experiment(pairs, ema_decay=0.9), tmp_path / "run")
    assert result["stage"] == "paired"
    learnt, first = checkpoint.load(tmp_path / "run"), checkpoint.load(pairs / "image")
    assert isinstance(learnt.description, TwoTowers)
    kept = flatten(first.params)
    for name, array in flatten(learnt.params["image"]).items():
        np.testing.assert_array_equal(array, kept[name])
    assert not any(name.startswith("head") for name in learnt.params["image"])
    losses = trainings.losses(tmp_path / "run")
    assert losses[1] == pytest.approx(np.log(48), rel=0.5)
    assert learnt.params["t"] != pytest.approx(np.log(10), abs=1e-6)
    # Nothing is kept of the locked tower by the optimiser.
    opt = tmp_path / "run/checkpoints/3/opt"
    assert "image" not in {path.name.split(".")[-2] for path in opt.iterdir() if "." in path.name}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_pair_learns_digits_by_their_names(loss: str, pairs: Path, tmp_path: Path) -> None:
    long = {
        "total_steps": 400,
        "warmup_steps": 40,
        "eval_every": 200,
        "lock_image": False,
        "contrastive_loss": loss,
    }
    train(experiment(pairs, **long), tmp_path / "run")
    asked = [f"--checkpoint={tmp_path / 'run'}", f"--vocab={pairs / 'vocab.txt'}"]
    digits = checkpoint.load_card(tmp_path / "run")
    assert digits.description.bias == (loss == "sigmoid")  # type: ignore[union-attr]
    found = zero_shot.main([*asked, f"--dataset=pairs:{pairs / 'pairs.jsonl'}"])
    assert found["pairs"] == 60
    # Of 60 texts 30 differ, and equal ones count for each other: chance is below a tenth.
    assert found["image_to_text_recall_5"] > 0.6  # type: ignore[operator]
    assert (
        found["image_to_text_recall_1"] <= found["image_to_text_recall_5"] <= found["image_to_text_recall_10"]
    )  # type: ignore[operator]
    folder = captioned.write_classes(tmp_path / "digits")
    sentences = "--templates=a photo of the digit {}.|the number {}"
    named = zero_shot.main([*asked, f"--dataset=folder:{folder}", "--split=train", sentences])
    assert named["examples"] == 80
    assert named["top1"] > 0.5  # type: ignore[operator]  # of ten classes, none of which it was trained on as such
    export(
        [
            f"--checkpoint={tmp_path / 'run'}",
            f"--output={tmp_path / 'pair' / '1'}",
            f"--vocab={pairs / 'vocab.txt'}",
            "--threads=1",
        ]
    )
    assert (tmp_path / "pair-image/1/model.onnx").is_file() or list(tmp_path.glob("pair*/1/model.onnx"))


def test_the_losses_are_those_of_their_papers() -> None:
    found = jax.random.normal(jax.random.key(0), (5, 5)) * 3
    rows, columns = (-jax.nn.log_softmax(found, axis=axis).diagonal() for axis in (1, 0))
    np.testing.assert_allclose(contrasting.softmax(found), (rows + columns) / 2, rtol=1e-5)
    signs = 2 * np.eye(5) - 1
    np.testing.assert_allclose(
        contrasting.sigmoid(found), np.log1p(np.exp(-signs * np.asarray(found))).sum(axis=1), rtol=1e-4
    )
    best = jnp.eye(5) * 40 - 20
    assert float(contrasting.softmax(best).max()) < 1e-6
    assert float(contrasting.sigmoid(best).max()) < 1e-6


def test_recalls_and_classes_by_hand() -> None:
    texts = np.eye(12, 12)
    images = np.roll(texts, 1, axis=0)  # each is likest another's text
    tokens = np.arange(12)[:, None]
    found = recalls(images, texts, tokens)
    assert found["image_to_text_recall_1"] == 0.0
    assert recalls(texts, texts, tokens) == dict.fromkeys(found, 1.0)
    same = np.ones((12, 1))
    assert recalls(same, same, tokens) == dict.fromkeys(found, 0.0)  # says the same of everything
    assert recalls(same, same, same) == dict.fromkeys(found, 1.0)  # all texts are one, and belong to all
    assert (
        recalls(images, texts, tokens // 2)["text_to_image_recall_1"] == 0.5
    )  # of two with one text, either will do
    classes = [np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.6, 0.8], [0.0, 1.0]])]
    assert classified(np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), classes, np.array([0, 1, 1])) == 1.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"line 2 is no pair: '\{'"),
        ('{"image": "0001.png"}', "line 2 is no pair"),
        ('{"image": "0001.png", "text": " "}', "line 2: image and text must be texts that say something"),
    ],
)
def test_a_line_that_is_no_pair_is_named(line: str, said: str, pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"image": "0001.png", "text": "one"}\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        open_pairs(f"pairs:{file}", spec_of(pairs / "vocab.txt", 8), pairs / "vocab.txt")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mixup": 0.5}, "mixup=0.5 is for classes"),
        ({"accum_steps": 2}, "accum_steps=2 is for classes"),
        ({"text.vocab": ""}, "images with texts need text.vocab"),
        ({"text.heads": 3}, "text.heads=3 does not divide text.width=16"),
        ({"contrastive_loss": "triplet"}, "must be one of softmax, sigmoid"),
    ],
)
def test_what_is_not_for_pairs_is_refused(values: dict[str, object], said: str, pairs: Path) -> None:
    with pytest.raises(UserError, match=said):
        experiment(pairs, **values)


def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    pairs: Path, tmp_path: Path
) -> None:
    for values, said in (
        ({"pretrained": ""}, "pretrained names none; set pretrained, or lock_image=False"),
        ({"text.vocab_size": 9}, "has no room; set it to"),
        ({"text.vocab": pairs / "gone.txt"}, r"gone\.txt"),
        ({"dataset": f"pairs:{pairs}/gone.jsonl"}, r"gone\.jsonl cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            train(experiment(pairs, model="ViT-digits", **values), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="each sentence needs one"):
        zero_shot.main(["--checkpoint=x", "--vocab=v", "--dataset=digits", "--templates=a photo"])
