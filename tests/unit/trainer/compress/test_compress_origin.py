"""Where the teacher that is cut comes from: a checkpoint, a bundle or a published file, and which of them are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from serving import preprocess
from serving.command import UserError
from tests.support.compressions import CUT, ROUNDING, cut_arguments
from tests.support.small_models import DIGITS_SPEC, logits, random_params, save_digits
from trainer import checkpoint, description
from trainer.compress import subject as cut_subject
from trainer.compress.__main__ import main
from trainer.compress.origin import Origin
from trainer.data.datasets import open_dataset
from trainer.export import job, subject
from trainer.weights.save import save_npz


def test_weights_of_a_named_model_are_cut_in_every_stated_size_and_the_result_says_so(tmp_path: Path) -> None:
    whole = description.named("ViT-digits", (8, 8), 3, 10)
    save_npz(tmp_path / "digits.npz", whole, random_params(whole))
    sizes = {"hidden_size": 32, "num_heads": 2, "qk_dim": 8, "v_dim": 4, "mlp_dim": 64}
    result = main(
        [
            "--model=ViT-digits",
            f"--weights={tmp_path / 'digits.npz'}",
            f"--workdir={tmp_path / 'pruned'}",
            *CUT,
            *(f"--config.shape.{name}={size}" for name, size in sizes.items()),
        ]
    )
    assert result["shape"] == {
        "num_layers": {"teacher": 6, "asked": 6, "actual": 6},
        "hidden_size": {"teacher": 64, "asked": 32, "actual": 32},
        "num_heads": {"teacher": 4, "asked": 2, "actual": 2},
        "qk_dim": {"teacher": 16, "asked": 8, "actual": 8},
        "v_dim": {"teacher": 16, "asked": 4, "actual": 4},
        "mlp_dim": {"teacher": 256, "asked": 64, "actual": 64},
    }
    student = checkpoint.load(tmp_path / "pruned")  # refuses arrays of other shapes than the description's
    assert student.description.width == 32
    assert student.description.blocks == (description.Block(2, 8, 4, 64),) * 6
    # The teacher lies beside it as a checkpoint, with which a distillation matches the student's blocks.
    assert (
        student.meta["teacher_hash"] == checkpoint.load(tmp_path / "pruned" / "teacher").meta["weights_hash"]
    )


def test_weights_with_another_number_of_classes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    whole = description.named("ViT-digits", (8, 8), 3, 7)
    save_npz(tmp_path / "seven.npz", whole, random_params(whole))
    origin = ["--model=ViT-digits", f"--weights={tmp_path / 'seven.npz'}"]
    with pytest.raises(UserError, match="data set digits has 10 classes, the weights have 7"):
        main([*origin, f"--workdir={tmp_path / 'pruned'}", *CUT])
    assert not (tmp_path / "pruned").exists()


def test_a_bundle_is_cut_as_the_checkpoint_that_it_was_made_of(teacher: Path, tmp_path: Path) -> None:
    cut = main(cut_arguments(teacher, tmp_path / "cut", "--config.budget.params=0.6"))
    bundle = tmp_path / "models" / "digits" / "1"
    asked = job.Request(bundle, precision="fp32", calibration_examples=8, min_agreement=0.9, threads=1)
    job.export(subject.from_checkpoint(str(teacher), ""), asked)
    given = [f"--weights={bundle}", f"--workdir={tmp_path / 'pruned'}", *CUT, *ROUNDING]
    result = main([*given, "--config.budget.params=0.6"])
    assert result["params"] == cut["params"]
    images = preprocess.normalise(open_dataset("digits").test.images[:32], DIGITS_SPEC)
    wanted, found = (
        logits(one.description, one.params, images)
        for one in map(checkpoint.load, (tmp_path / "cut", tmp_path / "pruned"))
    )
    # The bundle holds positions with what the graph adds to them: float32 sums in another order, logits of about 10.
    np.testing.assert_allclose(found, wanted, atol=0.01)


def test_weights_of_another_file_are_the_teacher_where_a_refused_compression_left_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = description.named("ViT-digits", (8, 8), 3, 10)
    files = [tmp_path / "first.npz", tmp_path / "second.npz"]
    for seed, file in enumerate(files):
        save_npz(file, whole, random_params(whole, seed=seed))
    shape = ["--config.shape.num_heads=2", "--config.shape.mlp_dim=64"]

    def asked(file: Path) -> list[str]:
        return ["--model=ViT-digits", f"--weights={file}", f"--workdir={tmp_path / 'pruned'}", *CUT, *shape]

    def refuse(*_: object) -> None:
        raise UserError("refused")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.compress.choosing.choose", refuse)
        with pytest.raises(UserError, match="refused"):
            main(asked(files[0]))
    main(asked(files[1]))
    beside, student = (
        checkpoint.load(tmp_path / "pruned" / "teacher"),
        checkpoint.load_card(tmp_path / "pruned"),
    )
    assert student.meta["teacher_hash"] == beside.meta["weights_hash"]
    np.testing.assert_array_equal(
        beside.params["head"]["kernel"], random_params(whole, seed=1)["head"]["kernel"]
    )


def test_weights_and_a_checkpoint_together_or_neither_are_refused(tmp_path: Path) -> None:
    for origin in (
        ["--checkpoint=a", "--model=ViT-digits", "--weights=b"],
        ["--checkpoint=a", "--model=ViT-digits"],
        ["--model=Ti_16"],
    ):
        with pytest.raises(UserError, match="one of --checkpoint and --weights"):
            main([*origin, f"--workdir={tmp_path / 'pruned'}", *CUT])


def test_a_teacher_of_another_data_set_with_the_same_classes_is_pointed_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_digits(tmp_path / "teacher")
    digits = open_dataset("digits")
    cut_subject.load(Origin(str(tmp_path / "teacher")), digits)
    assert not caplog.records
    cut_subject.load(Origin(str(tmp_path / "teacher")), dataclasses.replace(digits, name="mnist"))
    assert "the teacher learned digits, and is cut and judged on images of mnist" in caplog.text
