"""The peer's cut weights as checkpoints of ours, which train, export and evaluate as any other.

python -m tools.bench_compression.peer_checkpoints --teacher=PATH --weights=DIR --output=DIR

Writes OUTPUT/NAME for every WEIGHTS/NAME.npz. The peer keeps the teacher's attention scale 1/√d when a head is cut to r dims; our
models scale by 1/√r, so √(r/d) goes into the query.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from serving import command
from serving.command import UserError

if TYPE_CHECKING:
    from trainer.description import Block, ViT
    from trainer.models.build import Params

Arrays = dict[str, np.ndarray]  # by timm's names


def main(argv: list[str]) -> dict[str, object]:
    """Writes the checkpoints; the result lists them."""
    values = flags.FlagValues()
    for name, meaning in (
        ("teacher", "The teacher's checkpoint."),
        ("weights", "Folder of the peer's .npz files."),
        ("output", "Folder of the checkpoints."),
    ):
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    extra = command.parse_flags(values, argv, required=["teacher", "weights", "output"])
    teacher, weights, output = (values[name].value for name in ("teacher", "weights", "output"))
    command.require_usage(
        extra, bool(teacher and weights and output), "--teacher, --weights and --output are needed"
    )
    files = sorted(Path(weights).glob("*.npz"))
    if not files:
        raise UserError(f"--weights={weights} holds no .npz; run tools.bench_compression.torch_peer first")
    return {"checkpoints": [_write(teacher, path, Path(output) / path.stem) for path in files]}


def _write(teacher: str, path: Path, target: Path) -> str:
    # Imported late: --help answers without starting JAX.
    from trainer import checkpoint, description

    loaded = checkpoint.load(teacher)
    model = description.require_vit(loaded.description, "the peer")
    with np.load(path) as file:
        shape, params = from_timm(model, dict(file))
    meta = {**loaded.meta, "stage": "pruned", "next_example": 0, "teacher_hash": loaded.meta["weights_hash"]}
    checkpoint.save_model(target, checkpoint.Card(shape, loaded.preprocess, loaded.labels, meta), params)
    return str(target)


def from_timm(teacher: "ViT", arrays: Arrays) -> tuple["ViT", "Params"]:
    """Description and parameters of a cut `teacher` whose arrays have timm's names and whose heads kept their number."""
    from trainer.models.build import flatten, param_shapes, unflatten
    from trainer.weights import timm

    blocks = tuple(_block(block, arrays, index) for index, block in enumerate(teacher.blocks))
    shape = dataclasses.replace(teacher, blocks=blocks)
    shapes, places = flatten(param_shapes(shape)), timm.places(shape)
    read = {name: places[name].read(arrays[places[name].name], leaf.shape) for name, leaf in shapes.items()}
    for index, (before, after) in enumerate(zip(teacher.blocks, blocks, strict=True)):
        for leaf in ("kernel", "bias"):
            name = f"blocks/{index}/attention/query/{leaf}"
            read[name] = (read[name] * math.sqrt(after.qk_dim / before.qk_dim)).astype(np.float32)
    return shape, unflatten({name: np.ascontiguousarray(array) for name, array in read.items()})


def _block(teacher: "Block", arrays: Arrays, index: int) -> "Block":
    head_dim = len(arrays[f"blocks.{index}.attn.qkv.weight"]) // (3 * teacher.num_heads)
    neurons = len(arrays[f"blocks.{index}.mlp.fc1.weight"])
    return dataclasses.replace(teacher, qk_dim=head_dim, v_dim=head_dim, mlp_dim=neurons)


if __name__ == "__main__":
    command.run_command(main, extra="train")
