"""Images a second of the input: JPEG photographs, decoded, cropped at random to 224 pixels, flipped."""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from serving.preprocess import PreprocessSpec
from tools.bench_training import peer, photographs
from tools.bench_training.rounds import alternate, ratios, spread
from trainer.data.augment import flip, inception_crop
from trainer.data.datasets import open_dataset
from trainer.data.encoded import decoded
from trainer.data.pipeline import train_batches

_BATCH = 32
_AHEAD = 8  # batches, more than the pipeline reads ahead
_SPEC = PreprocessSpec("RGB", 224, 224, (127.5,) * 3, (127.5,) * 3)


def input_pipeline(count: int, workers: int) -> dict[str, object]:
    """Of the pipeline, of a bare loop, and of tf.data where it is installed: with one thread, and with as many as it likes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        pictures, whose = _photographs(Path(folder), count * 5 // 4 + 20)
        source = open_dataset(f"folder:{folder}/parts", bad_images="unchecked").train
        batches = held.enter_context(reading(source, _SPEC, "light", _BATCH, workers))

        def pipeline(_: int) -> float:
            for _ in itertools.islice(batches, _AHEAD):  # what was read while others were measured
                pass
            rounds, began_s = max(1, count // _BATCH), time.monotonic()
            for _ in itertools.islice(batches, rounds):
                pass
            return rounds * _BATCH / (time.monotonic() - began_s)

        measures = {"bare": lambda number: _bare_loop(pictures[:count], number), "pipeline": pipeline}
        if peer.installed():
            asked = held.enter_context(peer.Peer(["tf_data"], {"files": list(map(str, pictures[:count]))}))
            measures["tf_data_one_thread"] = lambda _: asked.ask({"threads": 1})
            measures["tf_data"] = lambda _: asked.ask({"threads": 0})
        found = alternate(measures)
    return {
        "images": count,
        "photographs": whose,
        "workers": workers,
        "images_per_s": {name: spread(values) for name, values in found.items()},
        "pipeline_to_bare": spread(ratios(found["pipeline"], found["bare"])),
        **{
            f"pipeline_to_{name}": spread(ratios(found["pipeline"], found[name]))
            for name in found
            if name.startswith("tf_data")
        },
    }


@contextlib.contextmanager
def reading(
    source: Any, spec: PreprocessSpec, aug: str, batch: int, workers: int = 0
) -> Iterator[Iterator[Any]]:
    """The batches of a training of one process, whose reading ahead ends with the context."""
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


def _photographs(folder: Path, count: int) -> tuple[list[Path], str]:
    """JPEG files, and whose photographs they are parts of: scikit-image's where `make tf` installed it, else scikit-learn's two."""
    if peer.installed():
        whole = folder / "whole"
        with peer.Peer(["photographs"], {"folder": str(whole)}):
            pictures = [Image.open(path).convert("RGB") for path in sorted(whole.iterdir())]
        return photographs.write(folder / "parts", pictures, count), "scikit-image"
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    return photographs.write(folder / "parts", pictures, count), "scikit-learn"


def _bare_loop(paths: list[Path], seed: int) -> float:
    """Read, decode, crop at random, flip: one after another in one thread, with what the pipeline does it with."""
    rng, began_s = np.random.default_rng(seed), time.monotonic()
    for path in paths:
        flip(inception_crop(decoded(path.read_bytes()), rng, (224, 224)), rng)
    return len(paths) / (time.monotonic() - began_s)
