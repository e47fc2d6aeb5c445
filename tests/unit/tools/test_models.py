"""The table of models: its figures are the published ones, and its errors say what to do."""

import pytest

from serving.command import UserError
from tools import models
from trainer.description import variant_names


def test_every_published_model_has_a_row() -> None:
    rows = models.main([])["models"]
    assert isinstance(rows, list)
    ours = {name for name in variant_names() if name.startswith(("ViT-digits", "ViT-fashion"))}
    assert {row["model"] for row in rows} == set(variant_names()) - ours


@pytest.mark.parametrize(
    ("name", "mib"),
    # The sizes in the README of the original repository, which are those of the 21,843-class checkpoints.
    [
        ("L/16", 1243),
        ("B/16", 391),
        ("S/16", 115),
        ("R50+L/32", 1337),
        ("R26+S/32", 170),
        ("Ti/16", 37),
        ("B/32", 398),
    ],
)
def test_sizes_with_the_large_head_are_those_of_the_published_files(name: str, mib: int) -> None:
    (row,) = models.main([f"--name={name}"])["models"]  # type: ignore[misc]
    # Whole MiB there, some rounded up and some to the nearest.
    assert abs(mib - row["mib_fp32_21843"]) < 1


def test_a_precision_costs_as_many_bytes_as_it_has() -> None:
    (row,) = models.main(["--name=Ti_16"])["models"]  # type: ignore[misc]
    params = row["params"]
    assert [row[f"mib_{name}_1000"] for name in ("fp32", "bf16", "int8")] == [
        round(params * size / 2**20, 1) for size in (4, 2, 1)
    ]


def test_the_table_is_for_people_and_the_result_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    models.main(["--name=Ti_16", "--image_sizes=224", "--classes=10"])
    printed = capsys.readouterr()
    assert "gmacs 224" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--name=Tj_16", "nearest is 'ViT-Ti_16'"),
        ("--image_sizes=224,x", "--image_sizes=224,x"),
        ("--classes=0", "--classes=0"),
        ("--image_sizes=8", "smaller than one patch"),
        ("Ti_16", "unexpected argument"),
    ],
)
def test_bad_input_is_refused_in_one_line(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.main([argument])
