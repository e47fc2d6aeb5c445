"""What the keys of a configuration mean and, for one recipe, what they are: the help behind the flags of a command.

The meanings stand at the fields, as `Annotated[type, meaning]`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from trainer.config.fields import defaults
from trainer.config.recipe import dotted, load_recipe


def keys_help(kind: type, recipe: str | None) -> str:
    """The keys of the configuration `kind`, one a line, each with its value in `recipe` if one is given.

    Raises:
      UserError: for an unknown or broken recipe.
    """
    values = defaults(kind) | (dotted(load_recipe(recipe)) if recipe else {})
    where = (
        f"as {recipe} has them"
        if recipe
        else "with their defaults; those without have them in recipes: add --config=FILE.py to see them"
    )
    lines = [f"  --config.{key}{_shown(values.get(key))}{meaning}" for key, meaning in _keys(kind)]
    return "\n".join([f"Keys of the configuration, {where}:", *lines])


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, meaning) of every field."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        base, meaning = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
        if dataclasses.is_dataclass(base) and isinstance(base, type):
            yield from _keys(base, f"{prefix}{name}.")
        else:
            yield prefix + name, f": {meaning}" if meaning else ""


def _shown(value: Any) -> str:
    return "" if value is None else f"={value}"
