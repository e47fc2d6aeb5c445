"""Timings on disk: what was measured on this machine once is not measured again.

A timing holds for one CPU model with its features, one version of the runtime, one batch, thread count and precision; all of
them are in the file, and the cache's file name is their hash.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.command import UserError, progress
from serving.timing.profile import FORMAT, Machine, write
from serving.timing.turns import Timing
from trainer import description
from trainer.compress.latency import Setting, Timer
from trainer.description import ViT

_AT_ONCE = 16  # models in memory


@dataclasses.dataclass(frozen=True)
class Device:
    """A recorded profile: the machine, the teacher whose sizes were timed on it, and what they took."""

    path: Path
    machine: Machine
    teacher: ViT
    timings: dict[str, Timing]

    @staticmethod
    def of(path: Path, setting: Setting) -> "Device":
        """The profile at `path`.

        Raises:
          UserError: when it cannot be read, or is of another setting than `setting`.
        """
        if not path.is_file():
            raise UserError(
                f"budget.profile={path} is no file; python -m serving.timing writes one on the device"
            )
        machine, timings = read(path, setting)
        try:
            said = json.loads(json.loads(path.read_text())["teacher"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} does not say of which teacher it is; give what python -m serving.timing wrote"
            ) from error
        teacher = description.require_vit(description.from_json(said), "compression")
        return Device(path, machine, teacher, timings)

    def timer(self, models: Sequence[ViT]) -> list[Timing]:
        """The recorded timings of `models`.

        Raises:
          UserError: when one was not timed.
        """
        try:
            return [self.timings[name_of(model)] for model in models]
        except KeyError as error:
            raise UserError(
                f"profile {self.path} lacks sizes that this compression asks for: it is of another teacher or other "
                "round_* keys, or was interrupted; write the kit from this teacher and recipe and time all of it"
            ) from error


def cache_path(machine: Machine, setting: Setting, how: str) -> Path:
    """Where timings of `machine` under `setting`, made in the way `how`, are kept: in XDG_CACHE_HOME, or ~/.cache."""
    text = json.dumps([FORMAT, machine, dataclasses.asdict(setting), how], sort_keys=True)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vitforge" / "latency" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def kept(timer: Timer, machine: Machine, setting: Setting, path: Path) -> Timer:
    """`timer`, asked only for what `path` does not hold yet, few models at a time; `path` holds all that were timed."""

    def timed(models: Sequence[ViT]) -> list[Timing]:
        known = read(path, setting)[1] if path.is_file() else {}
        missing = [model for model in dict.fromkeys(models) if name_of(model) not in known]
        with progress(len(missing), "timing") as bar:
            for some in (missing[start : start + _AT_ONCE] for start in range(0, len(missing), _AT_ONCE)):
                known |= dict(zip(map(name_of, some), timer(some), strict=True))
                write(path, machine, dataclasses.asdict(setting), known)
                bar.advance(len(some))
        return [known[name_of(model)] for model in models]

    return timed


def read(path: Path, setting: Setting) -> tuple[Machine, dict[str, Timing]]:
    """The machine and the timings by description.

    Raises:
      UserError: when the file is no profile or of another setting than `setting`.
    """
    try:
        values: Any = json.loads(path.read_text())
        found, has = values["format"], Setting(**values["setting"])
        timings = {name: Timing(*map(float, taken)) for name, taken in values["timings"].items()}
        machine = {name: str(values["machine"][name]) for name in ("cpu", "features", "int8", "runtime")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no latency profile; remove it, or write it anew (python -m serving.timing)"
        ) from error
    if found != FORMAT:
        raise UserError(f"profile {path} is of format {found!r}, not {FORMAT!r}; write it anew")
    if has != setting:
        raise UserError(
            f"profile {path} is of {_said(has)}, asked are {_said(setting)}; ask for those "
            "(--config.budget.batch, threads, precision), or write it anew"
        )
    return machine, timings


def _said(setting: Setting) -> str:
    return f"batch={setting.batch} threads={setting.threads} precision={setting.precision}"


def name_of(model: ViT) -> str:
    """What a model's timing is found by."""
    return json.dumps(description.to_json(model), sort_keys=True)
