"""`vitforge VERB` is the same as `python -m` of its module, and says what a smaller installation lacks."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

import trainer
from tests.support import servers
from tools import vitforge

HERE = [sys.executable, "-m", "tools.vitforge"]


@pytest.mark.parametrize("verb", vitforge.VERBS)
def test_every_verb_names_a_module_that_is_there(verb: str) -> None:
    spec = find_spec(vitforge.VERBS[verb].module)
    assert spec is not None
    if spec.submodule_search_locations is not None:
        assert find_spec(f"{vitforge.VERBS[verb].module}.__main__") is not None


def test_help_lists_every_verb() -> None:
    ended = subprocess.run([*HERE, "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {verb} " in ended.stdout for verb in vitforge.VERBS)


def test_an_unknown_verb_is_refused_with_those_that_exist() -> None:
    ended = subprocess.run([*HERE, "tarin"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no such verb: 'tarin'; there are train, compress")


def test_a_verb_passes_its_arguments_and_its_exit_code_on() -> None:
    ended = subprocess.run(
        [*HERE, "launch", "run", "--", "python", "-c", "exit(45)"], capture_output=True, text=True
    )
    assert ended.returncode == 45


@pytest.mark.parametrize(
    ("verb", "extra"), [("train", "train"), ("compress", "train"), ("evaluate", "train"), ("serve", "serve")]
)
def test_a_verb_whose_extra_is_missing_says_which_one_to_install(verb: str, extra: str) -> None:
    flags = {"evaluate": ["--checkpoint=x"], "serve": ["--model_repository=x"]}.get(verb, [])
    ended = servers.run("tools.vitforge", verb, *flags, without=["jax", "ml_collections", "grpc_health"])
    assert (ended.code, ended.lines) == (2, [])
    (line,) = ended.errors.splitlines()
    assert line.startswith("error: this command needs ")
    assert line.endswith(f"pip install 'vitforge[{extra}]'")


def test_the_version_is_that_of_the_project() -> None:
    ended = subprocess.run([*HERE, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"vitforge {trainer.__version__}\n"
