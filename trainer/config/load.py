"""From a recipe and overrides, as typed on the command line, to a configuration. All problems are reported at once."""

import dataclasses
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import ml_collections

from serving.command import UserError
from trainer.config.compression import Compression
from trainer.config.experiment import Experiment

_Config = TypeVar("_Config", Experiment, Compression)
_INSTALLED = Path(__file__).resolve().parents[2]  # holds the rooms, and configs/ beside them
_FLAG = "--config"
Overrides = list[tuple[str, str]]


def split_config_args(argv: Sequence[str]) -> tuple[str | None, Overrides, list[str]]:
    """Takes `--config=RECIPE` and `--config.key=value` (or `--config.key value`) out of `argv`.

    Returns (recipe or None, [(dotted key, text)], the other arguments).

    Raises:
      UserError: for an override without a value.
    """
    recipe, overrides, rest, pending = None, [], [], list(argv)
    while pending:
        argument = pending.pop(0)
        name, equals, value = argument.partition("=")
        if name != _FLAG and not name.startswith(_FLAG + "."):
            rest.append(argument)
            continue
        if not equals:
            if not pending or pending[0].startswith("--"):
                raise UserError(f"{argument} has no value; write {argument}=VALUE")
            value = pending.pop(0)
        if name == _FLAG:
            recipe = value
        else:
            overrides.append((name[len(_FLAG) + 1 :], value))
    return recipe, overrides, rest


def experiment(recipe: str, overrides: Overrides) -> Experiment:
    """The training configuration of `recipe` with `overrides`.

    Raises:
      UserError: for an unknown recipe, or naming all unknown keys and bad values.
    """
    return _load(Experiment, recipe, overrides)


def compression(recipe: str, overrides: Overrides) -> Compression:
    """The compression configuration of `recipe` with `overrides`; raises as `experiment` does."""
    return _load(Compression, recipe, overrides)


def _load(kind: type[_Config], recipe: str, overrides: Overrides) -> _Config:
    values = load_recipe(recipe)
    if kind is Compression:
        _replace_goal(values, overrides)
    problems = _apply(values, overrides)
    config = None
    try:
        config = _build(kind, values.to_dict())
        problems += config.problems()
    except TypeError as error:
        problems.append(f"{recipe} is no recipe for {kind.__name__.lower()}: {error}")
    if problems or config is None:
        raise UserError(f"configuration {recipe}: " + "; ".join(problems))
    return config


def load_recipe(recipe: str) -> ml_collections.ConfigDict:
    """What `get_config` of the recipe `FILE.py` or `FILE.py:argument` returns.

    The file is looked up from the current folder first, among the installed recipes second.

    Raises:
      UserError: for an unknown file (with the nearest known one), or an argument that the recipe refuses.
    """
    name, _, argument = recipe.partition(":")
    path = next((folder / name for folder in (Path.cwd(), _INSTALLED) if (folder / name).is_file()), None)
    if path is None:
        known = [f"configs/{file.name}" for file in sorted((_INSTALLED / "configs").glob("[!_]*.py"))]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(f"unknown recipe {name!r}; nearest is {near[0] if near else 'none'}, all are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"recipe {name!r} is no Python file; recipes are FILE.py with a function get_config(arg)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        values: ml_collections.ConfigDict = module.get_config(argument or None)
    except (ValueError, SyntaxError, ImportError, AttributeError) as error:
        raise UserError(f"recipe {recipe!r}: {error}") from error
    return values


def _apply(values: ml_collections.ConfigDict, overrides: Overrides) -> list[str]:
    known = _leaves(values)
    problems = []
    for key, text in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            problems.append(f"unknown key {key!r}, nearest is {near[0]!r}" if near else f"unknown key {key!r}")
            continue
        try:
            _set(values, key, _parse(text, known[key]))
        except ValueError:
            problems.append(f"{key}={text!r} is no {type(known[key]).__name__} (such as {known[key]!r})")
    return problems


def _replace_goal(values: ml_collections.ConfigDict, overrides: Overrides) -> None:
    """A goal on the command line stands in place of the recipe's, instead of beside it."""
    goals = ("budget", "shape")
    if any(key.partition(".")[0] in goals for key, _ in overrides):
        for goal in goals:
            for name, value in values[goal].items():
                values[goal][name] = type(value)(0)


def _leaves(values: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        found |= _leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def _parse(text: str, like: Any) -> Any:
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(like, int):
        return int(text)
    return type(like)(text)


def _set(values: ml_collections.ConfigDict, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        values = values[parent]
    values[name] = value


def _build(kind: type[_Config], values: dict[str, Any]) -> _Config:
    hints = get_type_hints(kind)
    nested = {name: hints[name](**value) if dataclasses.is_dataclass(hints.get(name)) else value for name, value in values.items()}
    return kind(**nested)
