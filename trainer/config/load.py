"""From a recipe and overrides, as typed on the command line, to a validated configuration. All problems are reported at once."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

import ml_collections
from absl import flags

from serving.command import UserError
from trainer.config.compression import LIMITS, Compression
from trainer.config.experiment import DURATIONS, UNITS, Experiment
from trainer.config.fields import ConfigError, defaults
from trainer.config.recipe import dotted, load_recipe

_Config = TypeVar("_Config", Experiment, Compression)
_FLAG = "--config"
Overrides = list[tuple[str, str]]


def define_flag(values: flags.FlagValues) -> None:
    """`--config`, for --help alone: `split_config_args` takes it out of the command line before flags are parsed."""
    flags.DEFINE_string(
        "config",
        None,
        "Recipe: FILE.py or FILE.py:argument; --config.key=value changes one value.",
        flag_values=values,
    )


def split_config_args(argv: Sequence[str]) -> tuple[str | None, Overrides, list[str]]:
    """Takes `--config=RECIPE` and `--config.key=value` (or `--config.key value`) out of `argv`.

    Returns (recipe or None, [(dotted key, text)], the other arguments). What stands behind `--` is left alone.

    Raises:
      UserError: for an override without a value.
    """
    recipe: str | None = None
    overrides: Overrides = []
    rest: list[str] = []
    pending = list(argv)
    while pending:
        argument = pending.pop(0)
        if argument == "--":
            return recipe, overrides, [*rest, argument, *pending]
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
            overrides.append((name.removeprefix(_FLAG + "."), value))
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
    stated = load_recipe(recipe)
    values = _filled(kind, stated)
    _check_kind(kind, recipe, values, stated)
    _replace(_alternatives(kind, values), values, overrides)
    _widen(kind, values)
    problems = _apply(values, overrides)
    try:
        config = _build(kind, values.to_dict())
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise UserError(f"configuration {recipe}: {'; '.join(problems)}")
    return config


def _filled(kind: type, recipe: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of `recipe` with the defaults of `kind` where it says nothing."""
    values = recipe.to_dict()
    for key, default in defaults(kind).items():
        *parents, name = key.split(".")
        parent = values
        for step in parents:
            parent = parent.setdefault(step, {}) if isinstance(parent, dict) else {}
        if isinstance(parent, dict):  # else `_key_problems` says what it is
            parent.setdefault(name, default)
    return ml_collections.ConfigDict(values)


def _check_kind(
    kind: type[_Config], recipe: str, values: ml_collections.ConfigDict, stated: ml_collections.ConfigDict
) -> None:
    """Refuses what a recipe's author can mend: another command's recipe, missing keys, values of a wrong type."""
    problems = _key_problems(kind, values)
    other = Compression if kind is Experiment else Experiment
    if problems and not _key_problems(other, _filled(other, stated)):
        command = {Experiment: "trainer.main", Compression: "trainer.compress"}[other]
        problems = [f"it is one for python -m {command}"]
    if problems:
        raise UserError(f"{recipe} is no recipe for {kind.__name__.lower()}: {'; '.join(problems)}")


def _key_problems(kind: Any, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys that are missing or too many, and values of another type than the field's: the recipe's own faults."""
    hints = get_type_hints(kind)
    problems = [f"key {prefix + name!r} is missing" for name in hints.keys() - values.keys()]
    for name, value in values.items():
        want = hints.get(name)
        if want is None:
            problems.append(_unknown(prefix + name, [prefix + known for known in hints]))
        elif dataclasses.is_dataclass(want) and isinstance(value, Mapping | ml_collections.ConfigDict):
            problems += _key_problems(want, value, f"{prefix}{name}.")
        elif type(value) is not want and (type(value), want) != (int, float):
            problems.append(f"{prefix}{name}={value!r} must be {want.__name__}")
    return sorted(problems)


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {key!r}, nearest is {near[0]!r}"


def _widen(kind: type, values: ml_collections.ConfigDict) -> None:
    """Makes whole numbers floats where the field is one, so that an override may be a fraction and the text is one."""
    hints = get_type_hints(kind)
    with values.ignore_type():
        for name, value in values.items():
            if dataclasses.is_dataclass(hints[name]):
                _widen(hints[name], value)
            elif hints[name] is float:
                values[name] = float(value)


def _alternatives(kind: type, values: ml_collections.ConfigDict) -> list[list[str]]:
    """Keys of which one stands in place of the others."""
    if kind is Compression:
        return [[*(f"budget.{name}" for name in LIMITS), *(f"shape.{name}" for name in values.shape)]]
    return [[f"{name}_{unit}" for unit in UNITS] for name in DURATIONS]


def _replace(alternatives: list[list[str]], values: ml_collections.ConfigDict, overrides: Overrides) -> None:
    """What is said on the command line stands in place of the recipe's, instead of beside it."""
    for keys in alternatives:
        if any(key in keys for key, _ in overrides):
            for key in keys:
                *parents, name = key.split(".")
                parent = values[parents[0]] if parents else values
                parent[name] = type(parent[name])()  # 0, or no name


def _apply(values: ml_collections.ConfigDict, overrides: Overrides) -> list[str]:
    known = dotted(values)
    problems = []
    for key, text in overrides:
        if key not in known:
            problems.append(_unknown(key, list(known)))
            continue
        try:
            parsed = _parse(text, known[key])
        except ValueError:
            problems.append(f"{key}={text!r} is no {type(known[key]).__name__} (such as {known[key]!r})")
            continue
        *parents, name = key.split(".")
        parent = values
        for step in parents:
            parent = parent[step]
        parent[name] = parsed
    return problems


def _parse(text: str, like: Any) -> Any:
    """`text` as a value of the type of `like`; a tuple's elements stand between commas and are of its first one's type."""
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(like, tuple):
        parts = [part.strip() for part in text.strip("() ").split(",") if part.strip()]
        return tuple(_parse(part, like[0] if like else "") for part in parts)
    return type(like)(text)


def _build(kind: type[_Config], values: dict[str, Any]) -> _Config:
    hints = get_type_hints(kind)
    nested = {
        name: hints[name](**value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    }
    return kind(**nested)
