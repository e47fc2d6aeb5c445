"""What the peer reads: the teacher's weights with timm's names, the calibration and test images as we prepare them, our logits.

python -m tools.bench_compression.peer_inputs --teacher=PATH --cut=PATH --output=DIR

`--cut` is a compression of that teacher: its card says which images calibrated it, and the peer gets the same ones.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from serving import command, preprocess
from serving.command import UserError

_COMPARED = 256  # test images whose logits the peer must reproduce


def main(argv: list[str]) -> dict[str, object]:
    """Writes teacher.safetensors, shape.json and the .npy files; the result counts the images."""
    values = flags.FlagValues()
    flags.DEFINE_string("teacher", None, "The teacher's checkpoint.", flag_values=values)
    flags.DEFINE_string("cut", None, "A compression of that teacher.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder to write; made when it is not there.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of the data set's files.", flag_values=values)
    extra = command.parse_flags(values, argv, required=["teacher", "cut", "output"])
    flag = {name: values[name].value for name in ("teacher", "cut", "output", "data_dir")}
    complete = bool(flag["teacher"] and flag["cut"] and flag["output"])
    command.require_usage(extra, complete, "--teacher, --cut and --output are needed")
    return _write(flag["teacher"], flag["cut"], Path(flag["output"]), flag["data_dir"])


def _write(teacher: str, cut: str, output: Path, data_dir: str) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    import jax.numpy as jnp

    from trainer import checkpoint, description
    from trainer.config.fields import from_text
    from trainer.data.datasets import open_dataset
    from trainer.models.build import bind
    from trainer.weights.save import save_safetensors

    loaded, meta = checkpoint.load(teacher), checkpoint.load_card(cut).meta
    model = description.require_vit(loaded.description, "the peer")
    data = open_dataset(meta["dataset"], data_dir or meta["data_dir"])
    settings = from_text(meta["config_text"])
    chosen = calibration_indices(settings["seed"], len(data.train), settings["calibration.examples"])
    fitted = _fitted(data.train.images[chosen], loaded.preprocess)
    if hashlib.sha256(fitted.tobytes()).hexdigest() != meta["calibration_hash"]:
        raise UserError(
            f"the images that calibrated {cut} cannot be found again; compress anew with this code"
        )
    test = preprocess.normalise(_fitted(np.asarray(data.test.images), loaded.preprocess), loaded.preprocess)
    output.mkdir(parents=True, exist_ok=True)
    (output / "teacher.safetensors").unlink(missing_ok=True)
    save_safetensors(output / "teacher.safetensors", model, loaded.params)
    (output / "shape.json").write_text(json.dumps(_shape(model)) + "\n")
    arrays = {
        "calibration_images": preprocess.normalise(fitted, loaded.preprocess),
        "calibration_labels": data.train.labels[chosen],
        "test_images": test,
        "test_labels": data.test.labels,
        "logits": np.asarray(bind(model, loaded.params)(jnp.asarray(test[:_COMPARED]))),
    }
    for name, array in arrays.items():
        np.save(output / f"{name}.npy", array)
    return {"calibration": len(chosen), "test": len(test)}


def calibration_indices(seed: int, available: int, examples: int) -> np.ndarray:
    """The training images that a compression of this seed calibrates with, in order; its card's hash proves it."""
    return np.sort(np.random.RandomState(seed).permutation(available)[:examples])


def _fitted(images: np.ndarray, spec: preprocess.PreprocessSpec) -> np.ndarray:
    return np.stack([preprocess.fit(image, spec) for image in images])


def _shape(model: Any) -> dict[str, Any]:
    """The teacher's sizes and conventions for a reader that does not know our description; its blocks are equal."""
    block = model.blocks[0]
    return {
        "image_size": list(model.image_size),
        "channels": model.channels,
        "patch_size": model.patch_size,
        "width": model.width,
        "depth": len(model.blocks),
        "num_heads": block.num_heads,
        "mlp_dim": block.mlp_dim,
        "num_classes": model.num_classes,
        "pooling": model.pooling,
        "gelu": model.gelu,
        "norm_eps": model.norm_eps,
    }


if __name__ == "__main__":
    command.run_command(main, extra="train")
