"""Benchmarks of the trainer on this machine, as ratios within one run.

python -m tools.bench_training overhead [--model=ViT-fashion_4] [--batch=128] [--steps=60]     the loop beside the bare jitted step
python -m tools.bench_training input [--images=400] [--workers=0]                              the pipeline beside a bare loop

`overhead`: the time of a step in `trainer.main`'s loop (input, metrics, progress) against the compiled step alone on one batch that
is there already. `input`: JPEG photographs of ImageNet's sizes, decoded, cropped at random to 224 pixels and flipped, by the Grain
pipeline of one reading thread (or of worker processes) against a plain loop over the same files in one thread; tf.data beside them
where TensorFlow is installed. Rounds alternate, so that a slow spell hits both.
"""

import contextlib
import importlib
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from serving.command import UserError
from tools import machine

_ROUNDS = 5
_AHEAD = 8  # batches, more than the pipeline reads ahead
_VERBS = ("overhead", "input")


def main(argv: list[str]) -> dict[str, object]:
    """Measures; the result holds every round."""
    values = flags.FlagValues()
    flags.DEFINE_string("model", "ViT-fashion_4", "Of overhead: what is trained.", flag_values=values)
    flags.DEFINE_integer("batch", 128, "Images of a step.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 60, "Of a round of overhead.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("images", 400, "Of a round of input.", lower_bound=8, flag_values=values)
    flags.DEFINE_integer("workers", 0, "Grain worker processes of input.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("output", "", "JSON file for the result.", flag_values=values)
    extra = command.parse_flags(values, argv)
    verb = extra[0] if extra else ""
    command.require_usage(extra[1:], verb in _VERBS, f"one of {', '.join(_VERBS)} is needed")
    flag = {name: values[name].value for name in values}
    measured = _overhead(flag) if verb == "overhead" else _input(flag)
    result: dict[str, object] = {"benchmark": verb, **measured, "machine": machine.facts()}
    if flag["output"]:
        Path(flag["output"]).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _overhead(flag: dict[str, Any]) -> dict[str, object]:
    """Seconds a step of the bare step and of the loop, by turns."""
    from trainer import config
    from trainer.train import train

    steps, batch = flag["steps"], flag["batch"]
    given = {
        "model": flag["model"],
        "batch": batch,
        "total_steps": steps,
        "warmup_steps": 1,
        "eval_every": 10 * steps,
        "checkpoint_every": 10 * steps,
        "log_every": 10,
        "batch_eval": 500,
    }
    overrides = [(name, str(value)) for name, value in given.items()]
    experiment = config.experiment("configs/fashion_mnist_long.py:base", overrides)
    bare_step = _bare_step(experiment)
    bare, loop = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS):
            bare.append(bare_step(steps))
            said = train(experiment, Path(folder) / str(number))
            loop.append(batch / float(str(said["train_images_per_s"])))
    ratios = [one / other - 1 for one, other in zip(loop, bare, strict=True)]
    return {
        "model": flag["model"],
        "batch": batch,
        "bare_step_ms": _spread([1e3 * one for one in bare]),
        "loop_step_ms": _spread([1e3 * one for one in loop]),
        "overhead": _spread(ratios),
    }


def _bare_step(experiment: Any) -> Callable[[int], float]:
    """So many steps on one batch → seconds of one."""
    import jax

    from trainer import optim, step
    from trainer.data.global_batch import to_global
    from trainer.parts import assemble
    from trainer.tasks import task_of
    from trainer.train import mesh_of

    parts, mesh = assemble(experiment), mesh_of(experiment)
    tx = optim.optimiser(experiment)
    state, placed, _ = step.init_state(parts.card.description, tx, mesh, experiment.seed)
    compiled = step.make_train_step(experiment, task_of(parts, None, mesh), tx, placed, mesh)
    with _batches(parts.dataset.train, parts.card.preprocess, experiment.aug, experiment.batch) as batches:
        batch = to_global(next(batches), mesh)
    held = [jax.block_until_ready(compiled(state, batch, None))[0]]

    def run(count: int) -> float:
        began_s = time.monotonic()
        for _ in range(count):
            held[0], metrics = compiled(held[0], batch, None)
        jax.block_until_ready(metrics)
        return (time.monotonic() - began_s) / count

    return run


def _input(flag: dict[str, Any]) -> dict[str, object]:
    """Images a second of the pipeline and of the bare loop, by turns."""
    from serving.preprocess import PreprocessSpec
    from trainer.data.datasets import open_dataset

    count, size = flag["images"], 32
    spec = PreprocessSpec("RGB", 224, 224, (127.5,) * 3, (127.5,) * 3)
    with tempfile.TemporaryDirectory() as folder:
        pictures = _photographs(Path(folder), count * 5 // 4 + 20)
        source = open_dataset(f"folder:{folder}").train
        with _batches(source, spec, "light", size, flag["workers"]) as batches:
            rounds = max(1, count // size)
            pipeline, bare, other = [], [], []
            for number in range(_ROUNDS):
                bare.append(_bare_images_per_s(pictures[:count], number))
                for _ in itertools.islice(batches, _AHEAD):  # what was read while the bare loop ran
                    pass
                began_s = time.monotonic()
                for _ in itertools.islice(batches, rounds):
                    pass
                pipeline.append(rounds * size / (time.monotonic() - began_s))
                other += _tf_data(pictures[:count])
    ratios = [one / other_one for one, other_one in zip(pipeline, bare, strict=True)]
    return {
        "images": count,
        "workers": flag["workers"],
        "pipeline_images_per_s": _spread(pipeline),
        "bare_images_per_s": _spread(bare),
        "ratio": _spread(ratios),
        "tf_data_images_per_s": _spread(other) if other else "TensorFlow is not installed here",
    }


@contextlib.contextmanager
def _batches(source: Any, spec: Any, aug: str, batch: int, workers: int = 0) -> Iterator[Iterator[Any]]:
    """The batches of a training of one process, whose reading ahead ends with the context."""
    from trainer.data.pipeline import train_batches

    stream: Any = train_batches(
        source,
        spec,
        seed=0,
        aug=aug,
        batch=batch,
        start_step=0,
        process_index=0,
        process_count=1,
        workers=workers,
    )
    with contextlib.closing(stream) as batches:
        yield batches


def _photographs(folder: Path, count: int) -> list[Path]:
    """Parts of scikit-learn's two photographs in sizes that ImageNet's have, 500×375 mostly, as JPEG of quality 90."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng, paths = np.random.default_rng(0), []
    whole = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}
    for number in range(count):
        name = ("china", "flower")[number % 2]
        width, height = ((500, 375), (375, 427), (500, 333), (400, 400))[number // 2 % 4]
        left, top = int(rng.integers(641 - width)), int(rng.integers(428 - height))
        path = folder / name / f"{number:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        whole[name].crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=90)
        path.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


def _bare_images_per_s(paths: list[Path], seed: int) -> float:
    """Read, decode, crop at random, flip: one after another in one thread, with what the pipeline does it with."""
    import numpy as np

    from trainer.data.augment import flip, inception_crop
    from trainer.data.encoded import decoded

    rng, began_s = np.random.default_rng(seed), time.monotonic()
    for path in paths:
        flip(inception_crop(decoded(path.read_bytes()), rng, (224, 224)), rng)
    return len(paths) / (time.monotonic() - began_s)


def _tf_data(paths: list[Path]) -> list[float]:
    """The same by tf.data with as many threads as it likes; nothing where TensorFlow is not installed."""
    try:
        tf = importlib.import_module("tensorflow")
    except ImportError:
        return []

    def view(path: Any) -> Any:
        content = tf.io.read_file(path)
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(content),
            whole,
            area_range=(0.05, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(content, window, channels=3), (224, 224))
        return tf.image.random_flip_left_right(tf.cast(image, tf.uint8))

    data = (
        tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
        .map(view, tf.data.AUTOTUNE)
        .batch(32)
    )
    began_s = time.monotonic()
    for _ in data:
        pass
    return [len(paths) / (time.monotonic() - began_s)]


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        raise UserError("nothing was measured")
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    command.run_command(main, extra="train")
