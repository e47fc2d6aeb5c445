"""Flags from fields: every back end says in its dataclass what it takes, and its flags, their help and their checks follow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from absl import flags

from serving.command import UserError

_Options = TypeVar("_Options")
_DEFINE = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    tuple: flags.DEFINE_multi_string,
}


def define(values: flags.FlagValues, backends: Mapping[str, type]) -> None:
    """A flag for every field of every back end; where two share one, its help names both."""
    takers: dict[str, list[str]] = {}
    for backend, kind in backends.items():
        for field in dataclasses.fields(kind):
            takers.setdefault(field.name, []).append(backend)
    for name, names in takers.items():
        kind, about, default = _field(backends[names[0]], name)
        _DEFINE[kind](name, default, f"({', '.join(names)}) {about}.", flag_values=values)


def read(values: flags.FlagValues, backends: Mapping[str, type[_Options]], chosen: str) -> _Options:
    """The back end `chosen`, with its flags.

    Raises:
      UserError: for a flag of another back end.
    """
    own = {field.name for field in dataclasses.fields(backends[chosen])}  # type: ignore[arg-type]
    for backend, kind in backends.items():
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if field.name not in own and values[field.name].present:
                raise UserError(f"--{field.name} is for --backend={backend}, not {chosen} (see --help)")
    read_values = {name: values[name].value for name in own}
    return backends[chosen](
        **{name: tuple(value) if isinstance(value, list) else value for name, value in read_values.items()}
    )


def without_those_of_others(words: Sequence[str], backends: Mapping[str, type], chosen: str) -> list[str]:
    """Arguments of a job's file, which may speak of several back ends, without those that are not for the one chosen."""
    own = {field.name for field in dataclasses.fields(backends[chosen])} if chosen in backends else set()
    others = {field.name for kind in backends.values() for field in dataclasses.fields(kind)} - own

    def name(word: str) -> str:
        return word.partition("=")[0].removeprefix("--")

    return [word for word in words if not {name(word), name(word).removeprefix("no")} & others]


def _field(owner: type, name: str) -> tuple[type, str, Any]:
    """(Type, help, default) of a field."""
    hint = get_type_hints(owner, include_extras=True)[name]
    assert get_origin(hint) is Annotated
    kind, about = get_args(hint)
    default = next(field.default for field in dataclasses.fields(owner) if field.name == name)
    return get_origin(kind) or kind, about, list(default) if isinstance(default, tuple) else default
