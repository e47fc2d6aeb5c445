"""A job as its user describes it: flags, or a TOML file whose keys are the flags, with the command behind --."""

import itertools
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from serving.command import UserError
from tools.launchers.job import NAME, Job
from tools.launchers.secrets import kind_of
from tools.plan.chips import topology

RESTARTS = 10
_TABLES = ("env", "secret")


def define_flags(values: flags.FlagValues) -> None:
    """The flags that every back end understands."""
    flags.DEFINE_string(
        "job",
        None,
        "TOML file whose keys are these flags; what is typed comes after, and wins.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "name",
        None,
        "What the job is known by; the last part of its --workdir, if not given.",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "How many processes.", flag_values=values)
    flags.DEFINE_integer(
        "devices_per_process",
        None,
        "Devices of each process; where they are CPUs, made so.",
        flag_values=values,
    )
    flags.DEFINE_string("topology", None, "TPU chips of a slice, such as v5e:4x4.", flag_values=values)
    flags.DEFINE_integer("slices", 1, "Slices of that topology.", flag_values=values)
    flags.DEFINE_multi_string(
        "env", [], "NAME=VALUE for every process; may be given again.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "secret",
        [],
        "NAME=env:VARIABLE, NAME=file:PATH or NAME=kubernetes:SECRET/KEY: a variable by reference; may be given again.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "venv",
        "",
        "Virtual environment on the hosts; a relative one lies in the code's folder.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "port", None, "Of the coordinator; 8476, if not given.", 1, 65535, flag_values=values
    )
    flags.DEFINE_float(
        "timeout_s",
        None,
        "End an attempt that takes more seconds (exit code 43), and with it the job.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "grace_s", 30.0, "Seconds between asking a process to end and killing it.", flag_values=values
    )
    flags.DEFINE_integer(
        "max_restarts",
        None,
        f"How often a job that died may start again; {RESTARTS} with a --workdir to go on from, else 0.",
        lower_bound=0,
        flag_values=values,
    )


def job_of(values: flags.FlagValues, command: tuple[str, ...]) -> Job:
    """The job that flags and a command describe.

    Raises:
      UserError: for values that make no sense.
    """
    most = values["max_restarts"].value
    bare = Job(command)
    workdir = bare.option("workdir")
    where = values["topology"].value
    secrets = _assignments("secret", values["secret"].value)
    for reference in secrets.values():
        kind_of(reference)
    return Job(
        command=command,
        name=values["name"].value or _name_of(workdir),
        processes=values["processes"].value,
        devices_per_process=values["devices_per_process"].value,
        topology=topology(where, values["slices"].value) if where else None,
        env=_assignments("env", values["env"].value),
        secrets=secrets,
        venv=values["venv"].value,
        port=values["port"].value,
        timeout_s=values["timeout_s"].value,
        grace_s=values["grace_s"].value,
        max_restarts=most if most is not None else RESTARTS if workdir else 0,
    )


def _name_of(workdir: str) -> str:
    """The last part of a path as a name that every back end takes, "" when it has no letters."""
    letters = (
        letter if letter.isascii() and letter.isalnum() else "-" for letter in Path(workdir).name.lower()
    )
    name = "".join(letters).strip("-").lstrip("0123456789-")[:40].rstrip("-")
    return name if NAME.fullmatch(name) else ""


def _assignments(flag: str, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if not text.partition("=")[0].isidentifier() or "=" not in text:
            shown = f"={text}" if flag == "env" else ""  # a secret's value is not said again
            raise UserError(f"--{flag}{shown}: NAME=VALUE is expected")
    return dict(text.split("=", 1) for text in texts)


def split_command(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """(The launcher's own arguments, the command behind --).

    Raises:
      UserError: for a command among the launcher's arguments, before its flags are taken for those of the launcher.
    """
    if "--" in argv:
        at = list(argv).index("--")
        return list(argv[:at]), tuple(argv[at + 1 :])
    for before, argument in itertools.pairwise(argv):
        is_value = before.startswith("--") and "=" not in before  # of a flag with a space, as in --name test
        if not argument.startswith("-") and "=" not in argument and not is_value and shutil.which(argument):
            raise misplaced(argument)
    return list(argv), ()


def misplaced(argument: str) -> UserError:
    """What is said of an argument that is no flag."""
    return UserError(f"unexpected argument {argument!r}: put -- before the command to run (see --help)")


def of_file(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """(Arguments, command) that a TOML file stands for: keys are flags, `command` is a list, env, secret and sweep are tables.

    Raises:
      UserError: when it cannot be read, or holds what is no flag's value.
    """
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--job={path}: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--job={path} is no TOML: {error}") from error
    command = described.pop("command", [])
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise UserError(
            f'--job={path}: command must be a list of strings, as in command = ["python", "-m", …]'
        )
    if "job" in described:
        raise UserError(f"--job={path}: a file describes a job, and names no other file")
    sweep = described.pop("sweep", {})
    if not isinstance(sweep, dict) or not all(isinstance(values, list) for values in sweep.values()):
        raise UserError(f"--job={path}: sweep must be a table of lists, as in base_lr = [0.01, 0.03]")
    words = [word for key, value in described.items() for word in _words(path, key, value)]
    if sweep:
        words += ["--sweep", *(f"{key}={','.join(map(_text, values))}" for key, values in sweep.items())]
    return words, tuple(command)


def _words(path: Path, key: str, value: Any) -> list[str]:
    if key in _TABLES and isinstance(value, dict):
        return [f"--{key}={name}={_text(one)}" for name, one in value.items()]
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no{key}"]
    if isinstance(value, list):
        return [f"--{key}={_text(one)}" for one in value]
    if isinstance(value, dict):
        raise UserError(f"--job={path}: {key!r} is a table; tables are {', '.join(_TABLES)} and sweep")
    return [f"--{key}={_text(value)}"]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
