"""Timings on disk: what was measured on this machine once is not measured again.

A timing holds for one CPU model with its features, one version of the runtime, one batch, thread count and precision; all of
them are in the file, and the cache's file name is their hash.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.command import UserError
from serving.runtime import cpu
from trainer import description
from trainer.compress.latency import Setting, Timer
from trainer.description import ViT
from trainer.export.timing import Timing

_FORMAT = "vitforge-latency-1"
Machine = dict[str, str]


def this_machine() -> Machine:
    """What a timing depends on besides its setting."""
    return {**cpu.identity(), "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}"}


def cache_path(machine: Machine, setting: Setting) -> Path:
    """Where timings of `machine` under `setting` are kept: in XDG_CACHE_HOME, or ~/.cache."""
    text = json.dumps([_FORMAT, machine, dataclasses.asdict(setting)], sort_keys=True)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vitforge" / "latency" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def kept(timer: Timer, machine: Machine, setting: Setting, path: Path) -> Timer:
    """`timer`, asked only for what `path` does not hold yet; `path` holds all of it afterwards."""

    def timed(models: Sequence[ViT]) -> list[Timing]:
        known = read(path, setting)[1] if path.is_file() else {}
        missing = [model for model in dict.fromkeys(models) if _name(model) not in known]
        if missing:
            known |= dict(zip(map(_name, missing), timer(missing), strict=True))
            _write(path, machine, setting, known)
        return [known[_name(model)] for model in models]

    return timed


def read(path: Path, setting: Setting) -> tuple[Machine, dict[str, Timing]]:
    """The machine and the timings by description.

    Raises:
      UserError: when the file is no profile or of another setting than `setting`.
    """
    try:
        values: Any = json.loads(path.read_text())
        found, has = values["format"], Setting(**values["setting"])
        timings = {name: Timing(*three) for name, three in values["timings"].items()}
        machine = {name: str(values["machine"][name]) for name in ("cpu", "features", "runtime")}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no latency profile; remove it") from error
    if found != _FORMAT:
        raise UserError(f"profile {path} is of format {found!r}, not {_FORMAT!r}; remove it")
    if has != setting:
        raise UserError(f"profile {path} is of {_said(has)}, asked are {_said(setting)}; remove it")
    return machine, timings


def _said(setting: Setting) -> str:
    return f"batch={setting.batch} threads={setting.threads} precision={setting.precision}"


def _name(model: ViT) -> str:
    return json.dumps(description.to_json(model), sort_keys=True)


def _write(path: Path, machine: Machine, setting: Setting, timings: dict[str, Timing]) -> None:
    content = {
        "format": _FORMAT,
        "machine": machine,
        "setting": dataclasses.asdict(setting),
        "timings": {name: dataclasses.astuple(timing) for name, timing in timings.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)  # whole or not at all
