"""Recipes: Python files with get_config(arg), found from the current folder first and beside the installed rooms second."""

import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from serving.command import UserError

_INSTALLED = Path(__file__).resolve().parents[2]  # holds the rooms, configs/ among them


def load_recipe(recipe: str) -> ml_collections.ConfigDict:
    """What `get_config` of the recipe `FILE.py` or `FILE.py:argument` returns.

    Raises:
      UserError: for an unknown file (with the nearest known one), an argument that the recipe refuses, or a broken recipe.
    """
    name, _, argument = recipe.partition(":")
    path = _find(name)
    try:
        values = _run(path).get_config(argument or None)
    except Exception as error:  # whatever a recipe raises, its author can mend it
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(f"recipe {recipe!r} ({path}): {reason}") from error
    if not isinstance(values, ml_collections.ConfigDict):
        kind = type(values).__name__
        raise UserError(
            f"recipe {recipe!r} ({path}): get_config returned {kind}, not ml_collections.ConfigDict"
        )
    return values


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names → the values of a recipe."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        flat |= dotted(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _find(name: str) -> Path:
    folders = (Path.cwd(), _INSTALLED)
    for folder in folders:
        if (folder / name).is_file() and name.endswith(".py"):
            return folder / name
    known = sorted(
        {f"configs/{file.name}" for folder in folders for file in (folder / "configs").glob("[!_]*.py")}
    )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise UserError(
        f"unknown recipe {name!r}; nearest is {near[0] if near else None!r}, all are {', '.join(known)}"
    )


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
