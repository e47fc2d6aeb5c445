"""Secrets by reference: a job says where a value is, and only the process that needs it ever holds the value.

    env:NAME                the launcher's own variable NAME
    file:PATH               what the file holds on the host where the process starts, without the line's end
    kubernetes:SECRET/KEY   a key of a Secret in the job's namespace

A value stands in no rendered file, no record, no log and on no command line.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from serving.command import UserError

KINDS = ("env", "file", "kubernetes")


def kind_of(reference: str) -> str:
    """Which of `KINDS` a reference is.

    Raises:
      UserError: when it is none, as a value given by mistake would be; the message does not repeat it.
    """
    kind, _, rest = reference.partition(":")
    if kind not in KINDS or not rest or (kind == "kubernetes" and not re.fullmatch(r"[^/]+/[^/]+", rest)):
        raise UserError(
            "--secret takes NAME=env:VARIABLE, NAME=file:PATH or NAME=kubernetes:SECRET/KEY, never the value itself"
        )
    return kind


def from_environment(secrets: Mapping[str, str]) -> dict[str, str]:
    """The values of those that are variables of this process.

    Raises:
      UserError: naming a variable that is not set.
    """
    names = {name: text[4:] for name, text in secrets.items() if text.startswith("env:")}
    for name, variable in names.items():
        if variable not in os.environ:
            raise UserError(f"--secret={name}=env:{variable}: there is no variable {variable} here; set it")
    return {name: os.environ[variable] for name, variable in names.items()}


def files(secrets: Mapping[str, str]) -> dict[str, str]:
    """The paths of those that are files."""
    return {name: text[5:] for name, text in secrets.items() if text.startswith("file:")}


def known_here(secrets: Mapping[str, str]) -> dict[str, str]:
    """The values of all that this machine knows; raises as `from_environment` does, and for a file that cannot be read."""
    values = from_environment(secrets)
    for name, path in files(secrets).items():
        try:
            values[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise UserError(
                f"--secret={name}=file:{path}: {why}; give a text file that can be read"
            ) from error
    return values
