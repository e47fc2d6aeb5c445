"""What the stand-ins for kubectl and gcloud share: programs that note how they are called and refuse what the real ones would.

A stand-in is `python FILE` under the name of the real program; FAKE_STATE names the folder in which it keeps what it was told.
"""

import json
import os
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn


def install(folder: Path, name: str, module: str) -> dict[str, str]:
    """Makes `name` a program in `folder`/bin that runs `module`; the variables under which it is found."""
    programs, state = folder / "bin", folder / name
    programs.mkdir(parents=True, exist_ok=True)
    state.mkdir()
    file = programs / name
    root = Path(__file__).parents[2]
    file.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m {module} "$@"\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", f"FAKE_{name.upper()}": str(state)}


def state_of(name: str) -> Path:
    """The folder of the stand-in that this process is."""
    return Path(os.environ[f"FAKE_{name.upper()}"])


def note(state: Path, words: list[str]) -> None:
    with (state / "calls.jsonl").open("a") as calls:
        print(json.dumps(words), file=calls)


def calls(state: Path) -> list[list[str]]:
    """Every call so far."""
    return [json.loads(line) for line in (state / "calls.jsonl").read_text().splitlines()]


def parse(words: list[str], flags: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """(Positional words, flags with their values); ends the process for a flag that the real program does not have."""
    positional, given = [], {}
    for word in words:
        if not word.startswith("-"):
            positional.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in flags:
            refuse(f"unknown flag: {name}")
        given[name] = value
    return positional, given


def refuse(message: str, code: int = 1) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def load(file: Path, default: Any) -> Any:
    return json.loads(file.read_text()) if file.exists() else default
