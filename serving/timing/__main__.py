"""Times a kit of models on this device and writes its latency profile, to which models are cut elsewhere.

    python -m serving.timing --kit=KIT --out=device.json

KIT is a folder that `python -m trainer.compress.kit` wrote; this needs nothing but the server's installation. Take the file back
and ask for --config.budget.profile=device.json. Interrupted, the command goes on with what is not timed yet.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from serving import command
from serving.command import UserError
from serving.timing.profile import FORMAT, KIT_FILE, KIT_FORMAT, Machine, all_cores, this_machine, write
from serving.timing.turns import Timing, drawn_images, time_models

_AT_ONCE = 8  # models in memory
_INPUT = "images"


def main(argv: list[str]) -> dict[str, object]:
    """Runs the command; see the module."""
    values = flags.FlagValues()
    flags.DEFINE_string("kit", None, "Folder that python -m trainer.compress.kit wrote.", flag_values=values)
    flags.DEFINE_string("out", None, "JSON file for this device's profile.", flag_values=values)
    flags.DEFINE_float(
        "seconds",
        5.0,
        "How long every eight models are timed; longer where others use the device as well.",
        lower_bound=0.0,
        flag_values=values,
    )
    extra = command.parse_flags(values, argv, required=["kit", "out"])
    folder, out = values["kit"].value, values["out"].value
    command.require_usage(extra, bool(folder and out), "--kit and --out are needed")
    return _profile(Path(folder), Path(out), values["seconds"].value)


def _profile(folder: Path, out: Path, seconds: float) -> dict[str, object]:
    command.require_folder(out.parent, "--out")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; name a JSON file in it")
    kit, machine = _read_kit(folder), this_machine()
    setting, done = kit["setting"], _done(out, kit, machine)
    missing = [model for model in kit["models"] if model["description"] not in done]
    with command.progress(len(kit["models"]), "timing", start=len(done)) as bar:
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            for model, timing in zip(some, _timed(folder, some, setting, seconds), strict=True):
                done[model["description"]] = timing
            write(out, machine, setting, done, teacher=kit["teacher"])
            bar.advance(len(some))
    spreads = [timing.spread for timing in done.values()]
    return {
        "profile": str(out),
        "models": len(done),
        "median_spread": round(float(np.median(spreads)), 4),
        **machine,
        **setting,
    }


def _read_kit(folder: Path) -> dict[str, Any]:
    try:
        kit: dict[str, Any] = json.loads((folder / KIT_FILE).read_text())
        if kit["format"] != KIT_FORMAT:
            raise UserError(f"kit {folder} is of format {kit['format']!r}, not {KIT_FORMAT!r}; write it anew")
        _check_kit(kit)
        files = [kit["weights"], *(model["file"] for model in kit["models"])]
        absent = [name for name in files if not (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no kit ({KIT_FILE}: {type(error).__name__}); python -m trainer.compress.kit writes one"
        ) from error
    if absent:
        raise UserError(
            f"kit {folder} lacks {absent[0]} and {len(absent) - 1} more files; copy the whole folder"
        )
    return kit


def _check_kit(kit: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError where a kit lacks what is read of it."""
    for name in ("batch", "threads"):
        int(kit["setting"][name])
    str(kit["teacher"]), str(kit["setting"]["precision"])
    for model in kit["models"]:
        str(model["description"]), [int(size) for size in model["image"]]


def _done(out: Path, kit: dict[str, Any], machine: Machine) -> dict[str, Timing]:
    """What `out` has of this kit on this device already."""
    if not out.exists():
        return {}
    try:
        has = json.loads(out.read_text())
        same = all(has[name] == value for name, value in _identity(kit, machine).items())
        timings = {name: Timing(*taken) for name, taken in has["timings"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{out} is no latency profile; give another --out or remove it") from error
    if not same:
        raise UserError(
            f"{out} is a profile of another kit, device or runtime; give another --out or remove it"
        )
    return timings


def _identity(kit: dict[str, Any], machine: Machine) -> dict[str, Any]:
    return {"format": FORMAT, "machine": machine, "setting": kit["setting"], "teacher": kit["teacher"]}


def _timed(
    folder: Path, models: list[dict[str, Any]], setting: dict[str, Any], seconds: float
) -> list[Timing]:
    inputs = [{_INPUT: drawn_images((setting["batch"], *model["image"]))} for model in models]
    threads = setting["threads"] or all_cores()
    return time_models([folder / model["file"] for model in models], inputs, threads, seconds)


if __name__ == "__main__":
    command.run_command(main, extra="serve")
