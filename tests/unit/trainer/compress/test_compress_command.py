import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import preprocess
from serving.command import UserError
from tests.support.compressions import cut_arguments
from tests.support.small_models import DIGITS_SPEC, SMALL, logits, random_params, save_digits
from trainer import checkpoint, description
from trainer.compress import repair, scores, streams
from trainer.compress.__main__ import main
from trainer.compress.plan import Layer, Plan
from trainer.compress.search import divergence
from trainer.compress.validation import top1
from trainer.data.datasets import open_dataset
from trainer.models.build import flatten


@pytest.fixture(scope="module")
def cut(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A workdir cut to 60 % of the parameters, and the command's result."""
    workdir = tmp_path_factory.mktemp("pruned")
    return workdir, main(cut_arguments(teacher, workdir, "--config.budget.params=0.6"))


def test_the_result_says_what_was_asked_what_came_out_and_what_it_is_worth(
    cut: tuple[Path, dict[str, Any]],
) -> None:
    workdir, result = cut
    assert json.loads(json.dumps(result)) == result  # the last line of stdout
    names = ("stage", "params", "macs", "validation_top1", "remarks", "workdir", "checkpoint")
    assert result.keys() == {*names, "seconds", "seconds_by_stage"}
    assert result["seconds_by_stage"].keys() == {"search", "cut"}
    assert result["stage"] == "pruned"
    assert result["workdir"] == result["checkpoint"] == str(workdir)  # nothing was distilled
    model = checkpoint.load_card(workdir).description
    assert result["params"] == {
        "teacher": description.param_count(SMALL),
        "asked": 0.6,
        "actual": description.param_count(model),
    }
    assert result["macs"] == {
        "teacher": description.macs(SMALL),
        "asked": None,
        "actual": description.macs(model),
    }
    assert result["params"]["actual"] <= 0.6 * result["params"]["teacher"]
    assert result["validation_top1"].keys() == {"teacher", "cut and repaired"}
    assert all(0 <= value <= 1 for value in result["validation_top1"].values())


def test_the_checkpoint_loads_from_its_description_alone_and_has_the_accuracy_that_was_reported(
    cut: tuple[Path, dict[str, Any]],
) -> None:
    workdir, result = cut
    loaded = checkpoint.load(workdir)  # refuses arrays of other shapes than the description's
    arrays = flatten(loaded.params).values()
    assert sum(array.size for array in arrays) == result["params"]["actual"]
    data = open_dataset("digits").validation
    found = logits(loaded.description, loaded.params, preprocess.normalise(data.images, DIGITS_SPEC))
    assert np.mean(found.argmax(-1) == data.labels) == result["validation_top1"]["cut and repaired"]


def test_what_is_saved_is_the_repaired_model_nearer_to_the_teacher_than_the_cut_alone(
    teacher: Path, cut: tuple[Path, dict[str, Any]]
) -> None:
    whole, student = checkpoint.load(teacher), checkpoint.load(cut[0])
    layers = json.loads((cut[0] / "plan.json").read_text())["layers"]
    indices = ("heads", "neurons")
    plan = Plan(
        tuple(Layer(**{**layer, **{name: tuple(layer[name]) for name in indices}}) for layer in layers)
    )
    data = open_dataset("digits")
    images, held_out = (
        preprocess.normalise(split.images, DIGITS_SPEC) for split in (data.train, data.validation)
    )
    sliced, _ = repair.cut(SMALL, whole.params, plan, images[:256], repair.Repair(1e-2, 64, fit=False))
    wanted = logits(SMALL, whole.params, held_out)
    repaired, alone = (
        divergence(wanted, logits(student.description, params, held_out))
        for params in (student.params, sliced)
    )
    assert repaired < 0.8 * alone


def test_the_model_that_is_loaded_says_what_the_cut_model_said(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[checkpoint.Card, Any]] = []
    save = checkpoint.save_model

    def watched(path: Path, card: checkpoint.Card, params: Any) -> None:
        saved.append((card, params))
        save(path, card, params)

    monkeypatch.setattr(checkpoint, "save_model", watched)
    main(
        cut_arguments(
            teacher,
            tmp_path,
            "--config.shape.num_layers=1",
            "--config.shape.num_heads=1",
            "--config.shape.mlp_dim=8",
        )
    )
    (card, params), loaded = saved[0], checkpoint.load(tmp_path)
    assert loaded.description == card.description
    assert loaded.description.blocks == (description.Block(1, 8, 8, 8),)
    images = preprocess.normalise(open_dataset("digits").test.images[:32], DIGITS_SPEC)
    wanted = logits(card.description, params, images)
    np.testing.assert_array_equal(logits(loaded.description, loaded.params, images), wanted)


@pytest.mark.parametrize("batch", [64, 128, 180, 256])
def test_accuracy_asks_for_whole_batches_only_and_counts_each_image_once(
    batch: int, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, source, asked = checkpoint.load(teacher), open_dataset("digits").validation, list[int]()
    run = streams.logits

    def watched(model: description.ViT, params: Any, images: Any, size: int) -> Any:
        asked.append(len(images) % size)
        return run(model, params, images, size)

    monkeypatch.setattr(streams, "logits", watched)
    found = top1(SMALL, loaded.params, DIGITS_SPEC, source, batch)
    monkeypatch.undo()
    wanted = logits(SMALL, loaded.params, preprocess.normalise(source.images, DIGITS_SPEC)).argmax(-1)
    assert asked == [0]
    assert found == np.mean(wanted == source.labels)


def test_plan_scores_and_report_lie_beside_the_model(cut: tuple[Path, dict[str, Any]]) -> None:
    workdir, result = cut
    plan = json.loads((workdir / "plan.json").read_text())["layers"]
    blocks = [
        description.Block(len(layer["heads"]), layer["qk_dim"], layer["v_dim"], len(layer["neurons"]))
        for layer in plan
    ]
    assert tuple(blocks) == checkpoint.load_card(workdir).description.blocks
    with np.load(workdir / "scores.npz") as file:
        found = scores.from_arrays({name: value for name, value in file.items() if name != "of"})
    assert found.keys() == {"0", "1", "stream"}
    assert found["1"]["mlp"].shape == (32,)
    report = (workdir / "report.md").read_text()
    for shown in (
        f"{result['params']['actual']:,}",
        "cut and repaired",
        "sizes by losses",
        "KL to the teacher",
    ):
        assert shown in report


def test_the_checkpoint_says_where_it_came_from(teacher: Path, cut: tuple[Path, dict[str, Any]]) -> None:
    old, new = checkpoint.load(teacher), checkpoint.load_card(cut[0])
    assert new.labels == old.labels
    assert new.preprocess == old.preprocess
    assert new.meta["stage"] == "pruned"
    assert new.meta["teacher_hash"] == old.meta["weights_hash"]
    assert len(new.meta["calibration_hash"]) == len(new.meta["config_hash"]) == 64
    assert "budget.params = 0.6" in new.meta["config_text"]
    assert new.meta["fingerprint"] == open_dataset("digits").fingerprint


def test_the_same_cut_again_gives_the_same_weights(
    teacher: Path, cut: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    main(cut_arguments(teacher, tmp_path, "--config.budget.params=0.6"))
    assert checkpoint.load(tmp_path).meta["weights_hash"] == checkpoint.load(cut[0]).meta["weights_hash"]


def _files(workdir: Path) -> dict[Path, int]:
    # Who looks at a workdir holds its lock for so long.
    return {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.name != ".lock"}


def test_a_workdir_of_another_compression_is_refused_by_what_differs_and_kept(
    teacher: Path, cut: tuple[Path, dict[str, Any]]
) -> None:
    workdir, _ = cut
    before = _files(workdir)
    with pytest.raises(UserError, match=r"budget\.params is 0\.6 there, 0\.5 now; give another --workdir"):
        main(cut_arguments(teacher, workdir, "--config.budget.params=0.5"))
    assert _files(workdir) == before


def test_a_workdir_of_another_teacher_is_refused(cut: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    save_digits(tmp_path, params=random_params(SMALL, seed=1))
    with pytest.raises(UserError, match="holds a compression of another teacher: sha256"):
        main(cut_arguments(tmp_path, cut[0], "--config.budget.params=0.6"))


def test_a_workdir_of_another_repair_is_refused(
    teacher: Path, cut: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What older code judged and cut is not mixed with what this code makes."""
    workdir = shutil.copytree(cut[0], tmp_path / "cut")
    identity = workdir / "compression.json"
    stored = json.loads(identity.read_text())
    stored["hashes"]["closed-form repair"] = "0" * 64
    identity.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"another closed-form repair: sha256 000000000000 there"):
        main(cut_arguments(teacher, workdir, "--config.budget.params=0.6"))


def test_a_workdir_with_a_checkpoint_of_something_else_is_refused_and_kept(teacher: Path) -> None:
    before = _files(teacher)
    with pytest.raises(UserError, match=f"{teacher} already holds a checkpoint"):
        main(cut_arguments(teacher, teacher, "--config.budget.params=0.5"))
    assert _files(teacher) == before


def test_the_same_command_again_tells_the_same_without_doing_it_again(
    teacher: Path, cut: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, result = cut
    monkeypatch.setattr("trainer.compress.choosing.choose", None)  # not to be called
    again = main(cut_arguments(teacher, workdir, "--config.budget.params=0.6"))
    assert {**again, "seconds": result["seconds"]} == result


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--config.budget.params=50",), r"budget\.params 50 is below the [\d,]+ that the least cut needs"),
        (("--config.budget.macs=99999999",), r"budget\.macs 99,999,999 is above the teacher's [\d,]+"),
        (("--config.shape.num_layers=3",), r"shape.num_layers=3 is above the teacher's 2"),
        (("--config.shape.num_heads=3",), r"shape.num_heads=3 is above the teacher's 2"),
        (("--config.calibration.examples=5000",), r"calibration.examples=5000 is above the 1257"),
        (
            ("--config.calibration.examples=12", "--config.budget.params=0.6"),
            r"calibration\.examples=12 is too few to search with: \d+ dimensions .* give at least \d+",
        ),
        (("--config.budgte.params=0.5",), r"unknown key 'budgte.params', nearest is 'budget.params'"),
        (("--config.dataset=digit",), r"unknown data set 'digit'; nearest is 'digits'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_numbers_and_nothing_is_written(
    teacher: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    workdir = tmp_path / "pruned"
    with pytest.raises(UserError, match=message):
        main(cut_arguments(teacher, workdir, *more))
    assert not workdir.exists()


def test_a_data_set_of_other_classes_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    teacher, workdir = tmp_path / "teacher", tmp_path / "pruned"
    save_digits(teacher, dataclasses.replace(SMALL, num_classes=3), labels=("cat", "dog", "cow"))
    with pytest.raises(
        UserError, match=r"data set digits has the classes 0, 1, .* the model knows cat, dog, cow"
    ):
        main(cut_arguments(teacher, workdir))
    assert not workdir.exists()


def test_a_missing_checkpoint_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint under"):
        main(cut_arguments(tmp_path / "nowhere", tmp_path / "pruned"))
    assert list(tmp_path.iterdir()) == []


def test_flags_that_are_missing_or_unknown_are_refused() -> None:
    with pytest.raises(UserError, match="one of --checkpoint and --weights"):
        main(["--checkpoint=x"])
    with pytest.raises(UserError, match="Unknown command line flag 'chekpoint'"):
        main(["--chekpoint=x"])


def test_a_teacher_with_nan_is_refused_by_the_name_of_its_array(tmp_path: Path) -> None:
    params = random_params(SMALL)
    params["patch"]["bias"][3] = np.nan
    save_digits(tmp_path / "teacher", params=params)
    with pytest.raises(UserError, match="the teacher's array patch/bias holds NaN or infinity"):
        main(cut_arguments(tmp_path / "teacher", tmp_path / "small", "--config.budget.params=0.6"))
    assert not (tmp_path / "small" / "compression.json").exists()
