"""A shipped model by itself: how long a call takes and how many test images it names rightly, on the serving runtime.

python -m tools.bench_compression.shipped --bundle=DIR --dataset=NAME [--data_dir=DIR] [--batch=1] [--threads=1]

Knows nothing of how the model was made or measured before. Its input is a test image, repeated to the batch; runs come in rounds,
and the median over all of them counts.
"""

import time
from pathlib import Path

import numpy as np
from absl import flags

from serving import command, preprocess
from serving.bundle import read_bundle
from serving.command import UserError, progress
from serving.runtime.select import open_runtime

_WARM_UP, _ROUNDS, _RUNS = 20, 15, 40
_AT_ONCE = 100  # images at a time for accuracy


def main(argv: list[str]) -> dict[str, object]:
    """Measures; the result has what `summary` says, and precision, correct, examples, params, macs."""
    values = flags.FlagValues()
    flags.DEFINE_string("bundle", None, "REPO/NAME/VERSION.", flag_values=values)
    flags.DEFINE_string("dataset", None, "Whose test images are asked about.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of its files.", flag_values=values)
    flags.DEFINE_integer("batch", 1, "Images in a timed call.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1, flag_values=values)
    extra = command.parse_flags(values, argv, required=["bundle", "dataset"])
    complete = bool(values["bundle"].value and values["dataset"].value)
    command.require_usage(extra, complete, "--bundle and --dataset are needed")
    names = ("bundle", "dataset", "data_dir", "batch", "threads")
    bundle, dataset, data_dir, batch, threads = (values[name].value for name in names)
    return _measure(Path(bundle), dataset, data_dir, batch, threads)


def _measure(path: Path, dataset: str, data_dir: str, batch: int, threads: int) -> dict[str, object]:
    from trainer.data.datasets import open_dataset

    bundle, test = read_bundle(path), open_dataset(dataset, data_dir).test
    if bundle.preprocess is None:
        raise UserError(f"bundle {path} takes no images; give a classifier's")
    images = np.stack([preprocess.fit(image, bundle.preprocess) for image in test.images])
    inputs = preprocess.normalise(images, bundle.preprocess)
    file, model = bundle.model_file()
    names = bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name
    runtime = open_runtime(model, file.runtime, threads)
    taken_ms = np.empty((_ROUNDS, _RUNS))
    one = {names[0]: np.repeat(inputs[:1], batch, axis=0)}
    with progress(_ROUNDS + -(-len(inputs) // _AT_ONCE), "measuring") as bar:
        for _ in range(_WARM_UP):
            runtime.run(one)
        for turn in range(_ROUNDS):
            for run in range(_RUNS):
                began_s = time.perf_counter()
                runtime.run(one)
                taken_ms[turn, run] = (time.perf_counter() - began_s) * 1e3
            bar.advance()
        correct = 0
        for start in range(0, len(inputs), _AT_ONCE):
            said = runtime.run({names[0]: inputs[start : start + _AT_ONCE]})[names[1]]
            correct += int((said.argmax(-1) == test.labels[start : start + _AT_ONCE]).sum())
            bar.advance()
    runtime.close()
    said_of = bundle.manifest.provenance
    return {
        **summary(taken_ms),
        "correct": correct,
        "examples": len(inputs),
        "precision": file.precision,
        "params": int(said_of.params),
        "macs": int(said_of.macs),
    }


def summary(taken_ms: np.ndarray) -> dict[str, float]:
    """Of (rounds, runs) times in ms: the median and 99th percentile of all, and how far the rounds' medians lie apart."""
    low, high = np.percentile(np.median(taken_ms, axis=1), [25, 75])
    p50, p99 = np.percentile(taken_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "spread": float((high - low) / p50)}


if __name__ == "__main__":
    command.run_command(main, extra="train,serve")
