"""Between frozen dataclasses and flat text: one `key = value` line per field, nested fields with dots."""

import dataclasses
import hashlib
import json
from typing import Any

Flat = dict[str, Any]


def flatten(config: Any, prefix: str = "") -> Flat:
    """Dotted names → plain values of a (nested) dataclass."""
    flat: Flat = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        flat |= flatten(value, name + ".") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def resolved_text(config: Any) -> str:
    """The whole configuration as sorted `key = value` lines; values are JSON."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in sorted(flatten(config).items()))


def parse_text(text: str) -> Flat:
    """The flat values of a text that `resolved_text` made."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {name: json.loads(value) for name, _, value in pairs}


def config_hash(config: Any) -> str:
    """sha256 of the resolved text."""
    return hashlib.sha256(resolved_text(config).encode()).hexdigest()


class Problems:
    """Collects what is wrong with a configuration, so that its user hears of everything at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, fine: bool, message: str) -> None:
        """Notes `message` unless `fine`."""
        if not fine:
            self.found.append(message)
