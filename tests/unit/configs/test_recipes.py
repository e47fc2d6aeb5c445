"""Every recipe, as shipped: it resolves, to the values that its golden text holds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.command import UserError
from trainer import config
from trainer.config import Compression, Experiment, resolved_text

ROOT = Path(__file__).parents[3]
GOLDENS = ROOT / "tests/golden/configs"

_STUDENT = [("pretrained", "runs/pruned"), ("teacher_weights", "runs/teacher")]
_SCRATCH = [("shape_of", "runs/pruned")]
# Recipe, how it is read, and what its command gives besides.
RECIPES: dict[str, tuple[Callable[..., Experiment | Compression], list[tuple[str, str]]]] = {
    "configs/digits.py:teacher": (config.experiment, []),
    "configs/digits.py:student": (config.experiment, _STUDENT),
    "configs/digits.py:scratch": (config.experiment, _SCRATCH),
    "configs/fashion_mnist.py:teacher": (config.experiment, []),
    "configs/fashion_mnist.py:student": (config.experiment, _STUDENT),
    "configs/fashion_mnist.py:scratch": (config.experiment, _SCRATCH),
    "configs/fashion_mnist_long.py:base": (config.experiment, []),
    "configs/fashion_mnist_long.py:large": (config.experiment, []),
    "configs/lit.py": (
        config.experiment,
        [("dataset", "pairs:photos.jsonl"), ("text.vocab", "vocab.txt"), ("pretrained", "runs/teacher")],
    ),
    "configs/augreg.py:Ti_16": (config.experiment, []),
    "configs/augreg.py:R_Ti_16": (
        config.experiment,
        [("teacher_model", "B_16"), ("teacher_weights", "runs/b16"), ("distill_weight", "0.5")],
    ),
    "configs/finetune.py:digits": (config.experiment, [("pretrained", "Ti_16.npz")]),
    "configs/finetune.py:fashion_mnist": (config.experiment, [("pretrained", "Ti_16.npz")]),
    "configs/compress.py:digits": (config.compression, []),
    "configs/compress.py:fashion_mnist": (config.compression, []),
}


def test_every_recipe_is_tested_here() -> None:
    assert {name.partition(":")[0] for name in RECIPES} == {
        f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py"
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_to_its_golden_text(recipe: str) -> None:
    """What a change of a recipe means for a run is seen in review; VITFORGE_UPDATE_GOLDENS=1 writes the texts anew."""
    read, overrides = RECIPES[recipe]
    text = resolved_text(read(recipe, overrides))
    golden = GOLDENS / (recipe.removeprefix("configs/").replace(".py", "").replace(":", "-") + ".txt")
    if os.environ.get("VITFORGE_UPDATE_GOLDENS") == "1":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize(
    "variant", ["digits.py:teacher", "fashion_mnist.py:teacher", "compress.py:digits", "finetune.py:digits"]
)
def test_a_recipe_without_an_argument_is_its_first_variant(variant: str) -> None:
    read, _ = RECIPES[f"configs/{variant}"]
    assert read(f"configs/{variant}", []) == read(f"configs/{variant.partition(':')[0]}", [])


@pytest.mark.parametrize("recipe", ["configs/digits.py:student", "configs/fashion_mnist.py:student"])
def test_a_student_without_its_checkpoints_is_refused(recipe: str) -> None:
    with pytest.raises(UserError, match=r"model is empty.*; distill_weight is above 0 but teacher_weights"):
        config.experiment(recipe, [])


@pytest.mark.parametrize("file", ["digits", "fashion_mnist", "compress"])
def test_an_unknown_argument_is_refused_with_the_known_ones(file: str) -> None:
    with pytest.raises(UserError, match=r"'pupil' must be one of \w+, \w+"):
        config.load_recipe(f"configs/{file}.py:pupil")


def test_student_and_scratch_train_for_equally_many_steps() -> None:
    """The comparison of the report is fair only then."""
    for file in ("digits", "fashion_mnist"):
        student, scratch = (
            config.load_recipe(f"configs/{file}.py:{role}") for role in ("student", "scratch")
        )
        assert (student.total_steps, student.batch, student.aug) == (
            scratch.total_steps,
            scratch.batch,
            scratch.aug,
        )


def test_recipes_are_read_without_jax_and_without_numpy() -> None:
    script = (
        "import sys\n"
        "for name in ('jax', 'flax', 'optax', 'grain', 'orbax', 'tensorstore', 'numpy'): sys.modules[name] = None\n"
        "from trainer import config\n"
        "print(config.config_hash(config.experiment('configs/digits.py', [('batch', '32')])))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == config.config_hash(
        config.experiment("configs/digits.py", [("batch", "32")])
    )


def test_an_installed_recipe_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.experiment("configs/digits.py", []).dataset == "digits"


def test_a_recipe_of_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    shipped = (ROOT / "configs/digits.py").read_text()
    (tmp_path / "configs/digits.py").write_text(
        shipped.replace("    return config", "    config.seed = 7\n    return config")
    )
    monkeypatch.chdir(tmp_path)
    assert config.experiment("configs/digits.py", []).seed == 7
