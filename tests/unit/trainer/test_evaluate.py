"""The evaluation command: what it counts, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from serving import preprocess
from serving.command import UserError
from tests.support.small_models import DIGITS_SPEC, SMALL, logits, random_params, save_digits
from trainer import checkpoint, evaluate, judging
from trainer.data.datasets import open_dataset
from trainer.interval import wilson
from trainer.models.build import Params


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "model"
    save_digits(path, params=random_params(SMALL))
    return path


def _by_hand(params: Params, split: str) -> tuple[float, float]:
    """Accuracy and loss without batches, masks or mesh."""
    source = getattr(open_dataset("digits"), split)
    said = logits(SMALL, params, preprocess.normalise(source.images, DIGITS_SPEC)).astype(np.float64)
    losses = np.log(np.exp(said).sum(axis=-1)) - said[np.arange(len(said)), source.labels]
    return float((said.argmax(axis=-1) == source.labels).mean()), float(losses.mean())


@pytest.mark.parametrize(("split", "examples"), [("test", 360), ("validation", 180)])
@pytest.mark.parametrize("batch", [7, 512])
def test_every_example_of_a_split_counts_once_whatever_the_batch(
    workdir: Path, split: str, examples: int, batch: int
) -> None:
    result = evaluate.main([f"--checkpoint={workdir}", f"--split={split}", f"--batch={batch}"])
    top1, loss = _by_hand(random_params(SMALL), split)
    assert result["examples"] == examples
    assert result["top1"] == pytest.approx(top1, abs=1e-12)  # whole numbers over a whole number
    assert result["loss"] == pytest.approx(loss, rel=1e-5)  # float32 logits and sums of at most 360 of them


def test_the_result_names_its_model_its_data_and_its_interval(workdir: Path) -> None:
    result = evaluate.main([f"--checkpoint={workdir}"])
    assert {name: result[name] for name in ("checkpoint", "stage", "dataset", "split")} == {
        "checkpoint": str(workdir),
        "stage": "trained",
        "dataset": "digits",
        "split": "test",
    }
    assert (result["top1_low"], result["top1_high"]) == wilson(result["top1"], 360)  # type: ignore[arg-type]


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_digits(tmp_path / "letters", labels=tuple("abcdefghij"))
    with pytest.raises(UserError, match="the model knows a, b, c"):
        evaluate.main([f"--checkpoint={tmp_path / 'letters'}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint is needed"),
        (["--checkpoint=nowhere"], "no checkpoint under nowhere"),
        (["--checkpoint=WORKDIR", "--split=exam"], "split"),
        (["--checkpoint=WORKDIR", "--batch=0"], "batch"),
        (["--checkpoint=WORKDIR", "--dataset=digit"], "unknown data set 'digit'; nearest is 'digits'"),
        (
            ["--checkpoint=WORKDIR", "--dataset=fashion_mnist", "--data_dir=nowhere"],
            "neither nowhere/train-images",
        ),
        (["--checkpoint=WORKDIR", "more"], "unexpected argument 'more'"),
        (["--chekpoint=WORKDIR"], "chekpoint"),
    ],
)
def test_bad_input_is_refused_with_what_was_wrong(workdir: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate.main([argument.replace("WORKDIR", str(workdir)) for argument in arguments])


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save_digits(tmp_path / "model")
    (folder,) = (tmp_path / "model/checkpoints").iterdir()
    (folder / "meta/metadata").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        evaluate.main([f"--checkpoint={tmp_path / 'model'}"])
    assert checkpoint.steps(tmp_path / "model") == [0]


def test_calibration_classes_and_confusions_are_those_of_the_answers(workdir: Path, tmp_path: Path) -> None:
    result = evaluate.main([f"--checkpoint={workdir}", f"--report={tmp_path / 'report'}", "--batch=100"])
    source = open_dataset("digits").test
    said = logits(SMALL, random_params(SMALL), preprocess.normalise(source.images, DIGITS_SPEC))
    predicted, labels = said.argmax(axis=-1), source.labels
    best = np.argsort(-said, axis=-1)[:, :5]
    assert result["top5"] == pytest.approx(float((best == labels[:, None]).any(axis=-1).mean()))

    odds = np.exp(said - said.max(axis=-1, keepdims=True))
    confidence = (odds / odds.sum(axis=-1, keepdims=True)).max(axis=-1)
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [
        abs((predicted == labels)[bins == place].mean() - confidence[bins == place].mean())
        * (bins == place).mean()
        for place in set(bins.tolist())
    ]
    assert result["calibration_error"] == pytest.approx(sum(gaps), abs=1e-6)

    whole = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert {name: whole[name] for name in result} == json.loads(json.dumps(result))
    third = whole["classes"][3]
    assert (third["class"], third["examples"]) == ("3", int((labels == 3).sum()))
    assert third["accuracy"] == pytest.approx(float((predicted[labels == 3] == 3).mean()))
    worst = min(row["accuracy"] for row in whole["classes"])
    assert next(iter(result["worst_classes"].values())) == worst  # type: ignore[attr-defined]
    rows = list(csv.reader((tmp_path / "report/confusion.csv").read_text().splitlines()))
    assert rows[0] == ["label \\ answer", *"0123456789"]
    table = np.array([[int(value) for value in row[1:]] for row in rows[1:]])
    assert table.sum() == 360
    assert table[7, 2] == int(((labels == 7) & (predicted == 2)).sum())
    assert (tmp_path / "report/evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_a_class_that_is_never_seen_or_never_said_has_no_figure() -> None:
    found = judging.Answers(
        *(np.array(values) for values in ([0, 0], [0, 1], [0.9, 1.0], [True, True], [0.1, 3.0]))
    )
    rows = judging.per_class(found, ("a", "b", "c"))
    assert rows[0] == {"class": "a", "examples": 2, "accuracy": 0.5, "precision": 1.0}
    assert rows[1] == {"class": "b", "examples": 0, "accuracy": None, "precision": 0.0}
    assert rows[2] == {"class": "c", "examples": 0, "accuracy": None, "precision": None}
    assert judging.calibration_error(found) == pytest.approx(0.5 * 0.1 + 0.5 * 1.0)
