"""A shipped model by itself: how long a call takes and how many test images it names rightly, on the serving runtime.

python -m tools.bench_compression.shipped --bundle=DIR --dataset=NAME [--data_dir=DIR] [--batch=1] [--threads=1] [--seconds=30]

Knows nothing of how the model was made or measured before. Its input is a test image, repeated to the batch.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from serving import command, preprocess
from serving.bundle import read_bundle
from serving.command import UserError, progress
from serving.runtime.select import open_runtime
from serving.timing.turns import time_in_turns

_AT_ONCE = 100  # images at a time for accuracy


def main(argv: list[str]) -> dict[str, object]:
    """Measures; the result has the fields of a `Timing`, and precision, correct, examples, params, macs."""
    values = flags.FlagValues()
    flags.DEFINE_string("bundle", None, "REPO/NAME/VERSION.", flag_values=values)
    flags.DEFINE_string("dataset", None, "Whose test images are asked about.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of its files.", flag_values=values)
    flags.DEFINE_integer("batch", 1, "Images in a timed call.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 30.0, "Of timing.", lower_bound=0.1, flag_values=values)
    extra = command.parse_flags(values, argv, required=["bundle", "dataset"])
    complete = bool(values["bundle"].value and values["dataset"].value)
    command.require_usage(extra, complete, "--bundle and --dataset are needed")
    names = ("bundle", "dataset", "data_dir", "batch", "threads", "seconds")
    bundle, dataset, data_dir, batch, threads, seconds = (values[name].value for name in names)
    return _measure(Path(bundle), dataset, data_dir, batch, threads, seconds)


def _measure(
    path: Path, dataset: str, data_dir: str, batch: int, threads: int, seconds: float
) -> dict[str, object]:
    from trainer.data.datasets import open_dataset

    bundle, test = read_bundle(path), open_dataset(dataset, data_dir).test
    if bundle.preprocess is None:
        raise UserError(f"bundle {path} takes no images; give a classifier's")
    inputs = preprocess.prepare_pixels(test.images, bundle.preprocess)
    file, model = bundle.model_file()
    names = bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name
    runtime = open_runtime(model, file.runtime, threads)
    one = {names[0]: np.repeat(inputs[:1], batch, axis=0)}
    (timing,) = time_in_turns([runtime], [one], seconds)
    with progress(-(-len(inputs) // _AT_ONCE), "asking") as bar:
        correct = 0
        for start in range(0, len(inputs), _AT_ONCE):
            said = runtime.run({names[0]: inputs[start : start + _AT_ONCE]})[names[1]]
            correct += int((said.argmax(-1) == test.labels[start : start + _AT_ONCE]).sum())
            bar.advance()
    runtime.close()
    said_of = bundle.manifest.provenance
    return {
        **dataclasses.asdict(timing),
        "correct": correct,
        "examples": len(inputs),
        "precision": file.precision,
        "params": int(said_of.params),
        "macs": int(said_of.macs),
    }


if __name__ == "__main__":
    command.run_command(main, extra="train,serve")
