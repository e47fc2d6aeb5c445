"""Writes the models that a device is timed with, so that a teacher can be cut to the latency of a machine that is not this one.

    python -m trainer.compress.kit --checkpoint=PATH --config=configs/compress.py --out=KIT [--config.budget.batch=1]

Copy KIT to the device and run there, with nothing but the server installed:

    python -m serving.timing --kit=KIT --out=device.json

The sizes are those that a compression of this teacher asks for; batch, threads (0: all cores of the device) and precision are
those of --config.budget. Time does not depend on what weights are, so that all files share one set of drawn ones.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
from absl import flags

from serving import command
from serving.command import UserError
from serving.timing.profile import KIT_FILE, KIT_FORMAT
from trainer import checkpoint, description
from trainer.compress import goals, latency, origin, profiles
from trainer.compress.allocate import Rounding
from trainer.compress.latency import Setting
from trainer.compress.pairs import Pair
from trainer.config import Compression
from trainer.description import TwoTowers, ViT
from trainer.weights import asked

_WEIGHTS = "weights.bin"
_DEVIATION = 0.02  # of drawn weights: no overflow, and nothing so small that arithmetic would slow down
_SHARED_BYTES = 1024  # from which an array is not written into its own file


def main(argv: list[str]) -> dict[str, object]:
    """Runs the command; see the module."""
    from trainer import config  # not above: a smaller installation says in one line what it lacks

    recipe, overrides, rest = config.split_config_args(argv)
    values = flags.FlagValues()
    config.define_flag(values)
    origin.define(values)
    flags.DEFINE_string("out", None, "New folder for the kit.", flag_values=values)
    extra = command.parse_flags(
        values,
        rest,
        required=["config", "out"],
        more_help=lambda: config.keys_help(config.Compression, recipe),
    )
    of, out = origin.of(values), values["out"].value
    command.require_usage(
        extra, bool(recipe and of and out), f"--config, --out and {origin.NEEDED} are needed"
    )
    assert of is not None  # required above
    settings = config.compression(str(recipe), overrides)
    if of.weights:
        model = asked.load(of.path, of.model, sha256=of.sha256, allow=of.allow).description
    else:
        model = checkpoint.load_card(Path(of.path)).description
    tower = Pair.tower_of(model) if isinstance(model, TwoTowers) else model
    teacher = description.require_vit(tower, "compression")
    return write(teacher, settings, Path(out))


def write(teacher: ViT, config: Compression, folder: Path) -> dict[str, object]:
    """Writes the kit of `teacher`; how many models it has, and its size in MiB.

    Raises:
      UserError: when the folder holds something already.
    """
    command.require_folder(folder, "--out")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another --out or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    budget, rounding = config.budget, Rounding(config.round_mlp, config.round_head_dim, config.round_width)
    setting = Setting(budget.batch, budget.threads, budget.precision)
    models = goals.timed_models(teacher, rounding)
    rows, longest = [], 0
    with command.progress(len(models), "models") as bar:
        for index, model in enumerate(models):
            graph = onnx.load_from_string(latency.graph_bytes(model, setting.precision))
            longest = max(longest, _share_weights(graph))
            file = f"{index:03}.onnx"
            (folder / file).write_bytes(graph.SerializeToString())
            image = [*model.image_size, model.channels]
            rows.append({"file": file, "description": profiles.name_of(model), "image": image})
            bar.advance()
    drawn = np.random.default_rng(0).standard_normal(-(-longest // 4), np.float32) * np.float32(_DEVIATION)
    (folder / _WEIGHTS).write_bytes(drawn.tobytes())
    content = {
        "format": KIT_FORMAT,
        "setting": dataclasses.asdict(setting),
        "teacher": profiles.name_of(teacher),
        "weights": _WEIGHTS,
        "models": rows,
    }
    (folder / KIT_FILE).write_text(json.dumps(content, indent=1) + "\n")
    mib = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    return {"kit": str(folder), "models": len(rows), "mib": round(mib, 2), **dataclasses.asdict(setting)}


def _share_weights(graph: onnx.ModelProto) -> int:
    """Points every large kernel to the start of the one file of weights; the bytes of the largest."""
    longest = 0
    for array in graph.graph.initializer:
        length = len(array.raw_data)
        if length < _SHARED_BYTES or len(array.dims) < 2:
            continue
        array.ClearField("raw_data")
        array.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", _WEIGHTS), ("offset", "0"), ("length", str(length))):
            array.external_data.add(key=key, value=value)
        longest = max(longest, length)
    return longest


if __name__ == "__main__":
    command.run_command(main, extra="train")
