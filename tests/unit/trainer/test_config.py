"""Overrides, validation, texts and resuming of `trainer.config`."""

import dataclasses
import re
from pathlib import Path

import pytest

from serving.command import UserError
from trainer import config
from trainer.config import (
    ConfigError,
    Experiment,
    config_hash,
    from_text,
    resolved_text,
)
from trainer.config.fields import flatten
from trainer.config.learning import AUGMENTATIONS
from trainer.config.load import _parse
from trainer.data.augment import _POLICIES

TEACHER = "configs/digits.py:teacher"


@pytest.fixture
def teacher() -> Experiment:
    return config.experiment(TEACHER, [])


def _refusal(recipe: str, **overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        config.experiment(recipe, [(key.replace("__", "."), text) for key, text in overrides.items()])
    return str(refused.value)


def test_config_arguments_are_taken_out_of_the_command_line() -> None:
    argv = [
        "--workdir=w",
        "--config=c.py:a",
        "--config.wd=0.1",
        "x",
        "--config.mesh.data",
        "-1",
        "--configure=1",
    ]
    overrides = [("wd", "0.1"), ("mesh.data", "-1")]
    assert config.split_config_args(argv) == ("c.py:a", overrides, ["--workdir=w", "x", "--configure=1"])


def test_a_recipe_may_stand_behind_its_flag_and_values_may_hold_an_equals_sign() -> None:
    argv = ["--config", "c.py", "--config.pretrained=a=b"]
    assert config.split_config_args(argv) == ("c.py", [("pretrained", "a=b")], [])


def test_a_command_line_without_a_recipe_has_none() -> None:
    assert config.split_config_args(["--workdir=w"]) == (None, [], ["--workdir=w"])


def test_what_stands_behind_two_dashes_is_left_alone() -> None:
    argv = ["--config=c.py", "--", "--config.wd=0.1"]
    assert config.split_config_args(argv) == ("c.py", [], ["--", "--config.wd=0.1"])


@pytest.mark.parametrize("argv", [["--config.wd"], ["--config.wd", "--workdir=w"], ["--config"]])
def test_an_override_without_a_value_is_refused(argv: list[str]) -> None:
    with pytest.raises(UserError, match=f"{argv[0]} has no value; write {argv[0]}=VALUE"):
        config.split_config_args(argv)


def test_overrides_take_the_type_of_the_value_they_replace() -> None:
    overrides = [("batch", "32"), ("base_lr", "3e-2"), ("wd", "0"), ("mesh.fsdp", "2"), ("aug", "none")]
    changed = config.experiment(TEACHER, overrides)
    assert (changed.batch, changed.base_lr, changed.wd, changed.mesh.fsdp, changed.aug) == (
        32,
        0.03,
        0.0,
        2,
        "none",
    )
    assert isinstance(changed.wd, float)


def test_the_last_of_two_overrides_holds() -> None:
    assert config.experiment(TEACHER, [("batch", "32"), ("batch", "16")]).batch == 16


@pytest.mark.parametrize(
    ("text", "like", "value"),
    [
        ("true", False, True),
        ("False", True, False),
        ("1e-3", 0.5, 0.001),
        ("(16, 32)", (8,), (16, 32)),
        ("0.5", (1.0, 2.0), (0.5,)),
        ("a,b", ("c",), ("a", "b")),
        ("", "text", ""),
    ],
)
def test_text_is_read_as_the_type_that_is_there(text: str, like: object, value: object) -> None:
    assert _parse(text, like) == value


@pytest.mark.parametrize(
    ("text", "like"), [("yes", True), ("1e3", 10), ("2.0", 1), ("", 0.5), ("(1, x)", (1,))]
)
def test_text_of_another_type_is_no_value(text: str, like: object) -> None:
    with pytest.raises(ValueError, match=r".*"):
        _parse(text, like)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("base_ler", "base_lr"), ("mesh.dat", "mesh.data"), ("mesh", "mesh."), ("", "")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"unknown key '{key}', nearest is '{nearest}"):
        config.experiment(TEACHER, [(key, "1")])


def test_all_problems_are_reported_in_one_line() -> None:
    said = _refusal(
        TEACHER, base_ler="1", batch="many", total_steps="0", wd="-1", aug="mixup", mesh__model="0"
    )
    assert "\n" not in said
    for phrase in (
        "unknown key 'base_ler'",
        "batch='many' is no int (such as ",
        "exactly one of total_steps, total_epochs, total_examples must be set, not none",
        "wd=-1.0 must be 0 or above",
        "aug='mixup' must be one of none, shift, shift_flip",
        "mesh -1 x 1 x 0",
    ):
        assert phrase in said


@pytest.mark.parametrize(
    "key", ["base_lr", "wd", "do", "sd", "label_smoothing", "grad_norm_clip", "distill_weight"]
)
@pytest.mark.parametrize("text", ["nan", "inf", "-0.5"])
def test_a_number_out_of_range_is_refused_by_name(key: str, text: str) -> None:
    assert f"{key}={float(text)} must be" in _refusal(TEACHER, **{key: text})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"distill_weight": "0.5"}, "distill_weight is above 0 but teacher_weights names no checkpoint"),
        ({"teacher_weights": "runs/t"}, "teacher_weights is set but distill_weight is 0"),
        ({"pretrained": "a", "shape_of": "b"}, "pretrained and shape_of exclude each other"),
        ({"model": ""}, "model is empty; name one, or set pretrained or shape_of"),
        ({"warmup_steps": "60", "total_steps": "50"}, "warmup_steps=60 is not below total_steps=50"),
        # optax has no cosine of no steps.
        ({"warmup_steps": "50", "total_steps": "50"}, "warmup_steps=50 is not below total_steps=50"),
        (
            {"qat_steps": "51", "total_steps": "50", "warmup_steps": "5"},
            "qat_steps=51 is above total_steps=50",
        ),
        ({"seed": "-1"}, "seed=-1 must be in [0, 2**32)"),
        ({"mesh__data": "0"}, "mesh 0 x 1 x 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides: dict[str, str], said: str) -> None:
    assert said in _refusal(TEACHER, **overrides)


def test_a_configuration_made_in_python_is_validated_too(teacher: Experiment) -> None:
    with pytest.raises(ConfigError, match="batch=0 must be at least 1") as refused:
        dataclasses.replace(teacher, batch=0, keep_last=0)
    assert len(refused.value.problems) == 2


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown recipe 'configs/digit.py'; nearest is 'configs/digits.py', all are"
    ):
        config.load_recipe("configs/digit.py")


@pytest.mark.parametrize("recipe", ["configs", "configs/README.md", ""])
def test_what_is_no_python_file_is_no_recipe(recipe: str) -> None:
    with pytest.raises(UserError, match="unknown recipe"):
        config.load_recipe(recipe)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def get_config(arg)", "SyntaxError"),
        ("", "no attribute 'get_config'"),
        ("def get_config(arg): return {}", "returned dict, not ml_collections.ConfigDict"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        (
            "import ml_collections as m\ndef get_config(arg): return m.ConfigDict({'seed': 0, 'bach': 1})",
            "'bach'",
        ),
    ],
)
def test_a_broken_recipe_is_refused_in_one_line(tmp_path: Path, source: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError, match=r"mine\.py") as refused:
        config.experiment(str(path), [])
    assert said in str(refused.value)


def test_a_value_of_another_type_in_a_recipe_is_refused(tmp_path: Path) -> None:
    shipped = (Path(config.__file__).parents[2] / "configs/digits.py").read_text()
    changed = "    return ml_collections.ConfigDict({**config, 'batch': '64'})"
    (tmp_path / "mine.py").write_text(shipped.replace("    return config", changed))
    with pytest.raises(UserError, match="batch='64' must be int"):
        config.experiment(str(tmp_path / "mine.py"), [])


def test_a_whole_number_in_a_recipe_is_a_float_where_the_field_is_one(tmp_path: Path) -> None:
    """Else an override could not be a fraction, and the same run would have two texts."""
    shipped = (Path(config.__file__).parents[2] / "configs/digits.py").read_text()
    (tmp_path / "mine.py").write_text(
        shipped.replace("    return config", "    config.wd = 0\n    return config")
    )
    shipped = (Path(config.__file__).parents[2] / "configs/compress.py").read_text()
    (tmp_path / "cut.py").write_text(shipped.replace('"params": 0.25', '"params": 50000'))
    mine = str(tmp_path / "mine.py")
    assert config.experiment(mine, [("wd", "0.25")]).wd == 0.25
    assert "wd = 0.0\n" in resolved_text(config.experiment(mine, []))
    assert config.compression(str(tmp_path / "cut.py"), []).budget.params == 50_000


def test_the_recipe_of_another_command_is_refused_with_that_command() -> None:
    with pytest.raises(
        UserError, match=r"is no recipe for compression: it is one for python -m trainer\.main"
    ):
        config.compression(TEACHER, [("budget.params", "0.5")])
    assert "it is one for python -m trainer.compress" in _refusal("configs/compress.py")


def test_the_text_holds_every_value_in_order(teacher: Experiment) -> None:
    text = resolved_text(teacher)
    assert from_text(text) == flatten(teacher)
    assert text.splitlines() == sorted(text.splitlines())
    assert "mesh.data = -1\n" in text


def test_the_hash_changes_with_any_value(teacher: Experiment) -> None:
    assert config_hash(teacher) == config_hash(config.experiment(TEACHER, []))
    assert config_hash(teacher) != config_hash(dataclasses.replace(teacher, log_every=teacher.log_every + 1))
    assert len(config_hash(teacher)) == 64


def test_every_augmentation_of_the_configuration_exists() -> None:
    assert tuple(_POLICIES) == AUGMENTATIONS


def test_help_lists_every_key_with_its_meaning_and_its_value_in_the_recipe() -> None:
    text = config.keys_help(config.Experiment, "configs/digits.py:teacher")
    assert "  --config.batch=64: images of one step, over all processes" in text.splitlines()
    assert (
        "  --config.mesh.data=-1: batch axis; -1 takes the devices that the others leave" in text.splitlines()
    )


@pytest.mark.parametrize("kind", [config.Experiment, config.Compression])
def test_every_key_has_a_meaning(kind: type) -> None:
    first, *lines = config.keys_help(kind, None).splitlines()
    assert first.endswith("add --config=FILE.py to see them:")
    assert all(re.fullmatch(r"  --config\.[a-z0-9_.]+(=.*?)?: .+", line) for line in lines)
    assert len(lines) > 10


@pytest.mark.parametrize(
    ("overrides", "total", "warmup"),
    [
        ([("total_epochs", "10"), ("warmup_epochs", "0.5")], 196, 10),  # 1,257 images, 64 a step
        ([("total_examples", "6400"), ("warmup_examples", "640")], 100, 10),
        ([("total_epochs", "10")], 196, 70),  # the recipe's own warm-up
        ([("total_steps", "90"), ("warmup_examples", "1")], 90, 1),
    ],
)
def test_durations_may_be_in_epochs_or_examples(
    overrides: list[tuple[str, str]], total: int, warmup: int
) -> None:
    experiment = config.experiment("configs/digits.py:teacher", overrides).in_steps(1257)
    assert (experiment.total_steps, experiment.warmup_steps) == (total, warmup)
    assert (experiment.total_epochs, experiment.warmup_examples) == (0, 0)
    assert experiment.in_steps(1257) == experiment


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [("total_epochs", "1"), ("total_examples", "5")],
            "must be set, not total_epochs=1.0 and total_examples=5",
        ),
        ([("warmup_epochs", "1"), ("warmup_steps", "5")], "at most one of warmup_steps, warmup_epochs"),
        ([("total_epochs", "-1")], "total_epochs=-1.0 must be 0 or above"),
    ],
)
def test_durations_that_contradict_each_other_are_refused(
    overrides: list[tuple[str, str]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        config.experiment("configs/digits.py:teacher", overrides)


def test_a_warm_up_longer_than_the_run_is_refused_once_both_are_known() -> None:
    experiment = config.experiment(
        "configs/digits.py:teacher", [("total_epochs", "1"), ("warmup_epochs", "2")]
    )
    with pytest.raises(UserError, match="warmup_steps=39 is not below total_steps=20"):
        experiment.in_steps(1257)
