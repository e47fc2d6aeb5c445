"""What all configurations share: flat text and hash of a frozen dataclass, and problems reported all at once.

The text is one `key = value` line per field, values as JSON, nested fields with dots, sorted; it goes into the log, the
checkpoint and the bundle.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any, get_type_hints

from serving.command import UserError

Flat = dict[str, Any]


class ConfigError(UserError):
    """A configuration that cannot run; `problems` holds everything that is wrong with it, a phrase each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("configuration: " + "; ".join(problems))
        self.problems = problems


class Problems:
    """Collects what is wrong with a configuration, so that its user hears of everything at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def check(self, fine: bool, message: str) -> None:
        """Notes `message` unless `fine`."""
        if not fine:
            self._found.append(message)

    def check_at_least(self, smallest: int, **values: float) -> None:
        """Every value must be a number from `smallest` on; keys are the names that the user knows."""
        bound = f"at least {smallest}" if smallest else "0 or above"
        for name, value in values.items():
            self.check(smallest <= value < math.inf, f"{name}={value} must be {bound}")

    def check_above_0(self, **values: float) -> None:
        """Every value must be a finite number above 0."""
        for name, value in values.items():
            self.check(0 < value < math.inf, f"{name}={value} must be above 0")

    def refuse(self) -> None:
        """Ends the checks.

        Raises:
          ConfigError: with all problems, if there are any.
        """
        if self._found:
            raise ConfigError(self._found)


def flatten(config: Any, prefix: str = "") -> Flat:
    """Dotted names → plain values of a (nested) dataclass."""
    flat: Flat = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        flat |= flatten(value, name + ".") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def defaults(kind: Any, prefix: str = "") -> Flat:
    """Dotted names → the default of every field of a (nested) dataclass that has one."""
    found: Flat = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            found |= defaults(hint, name + ".")
        elif field.default is not dataclasses.MISSING:
            found[name] = field.default
    return found


def resolved_text(config: Any) -> str:
    """The whole configuration as sorted `key = value` lines; values are JSON."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in sorted(flatten(config).items()))


def from_text(text: str) -> Flat:
    """The values that `resolved_text` wrote, by dotted name; also of a text that an older version wrote."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {name: json.loads(value) for name, _, value in pairs}


def config_hash(config: Any) -> str:
    """sha256 of the resolved text, in hexadecimal."""
    return hashlib.sha256(resolved_text(config).encode()).hexdigest()
