"""How much memory loading published weights takes: the peak of a fresh process against the size of the file.

    python -m tools.bench_weights [--model=L_16] [--num_classes=21843] [--folder=DIR]

Writes an npz of random weights (1.2 GiB for L/16 with ImageNet-21k's head) into a temporary folder and loads it in a process of its
own. The peak is what Linux reports as VmHWM: everything resident, the interpreter and JAX included.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from serving import command
from serving.command import UserError

_IMAGE_SIZE = (224, 224)

# Runs in the fresh process. `ru_maxrss` would not do: it keeps the peak of the process that started this one.
_LOAD = """
import json, re, sys, time
from trainer.models.build import flatten
from trainer.weights.load import load_weights

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

before = memory("VmRSS")
began = time.perf_counter()
weights = load_weights(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - began
arrays = sum(array.nbytes for array in flatten(weights.params).values())
print(json.dumps({"seconds": seconds, "before": before, "peak": memory("VmHWM"), "arrays": arrays}))
"""


def main(argv: list[str]) -> dict[str, object]:
    """Writes, loads and measures; the result has sizes in bytes and the ratio of peak and file."""
    values = flags.FlagValues()
    flags.DEFINE_string("model", "L_16", "Which model.", flag_values=values)
    flags.DEFINE_integer("num_classes", 21843, "Classes of its head.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("folder", None, "Where to make the temporary folder.", flag_values=values)
    extra = command.parse_flags(values, argv)
    command.require_usage(extra, bool(values["model"].value), "--model is needed")
    model = values["model"].value
    with tempfile.TemporaryDirectory(dir=values["folder"].value) as folder:
        path = Path(folder) / "weights.npz"
        _write(path, model, values["num_classes"].value)
        file_bytes = path.stat().st_size
        measured = _measure(path, model)
    return {
        "model": model,
        "file_bytes": file_bytes,
        "array_bytes": measured["arrays"],
        "before_bytes": measured["before"],
        "peak_bytes": measured["peak"],
        "peak_ratio": round(measured["peak"] / file_bytes, 2),
        "seconds": round(measured["seconds"], 2),
    }


def _write(path: Path, name: str, num_classes: int) -> None:
    # Imported late: --help answers without starting JAX.
    from trainer.description import named
    from trainer.models.build import unflatten
    from trainer.weights.adapt import shapes_of
    from trainer.weights.save import save_npz

    model = named(name, _IMAGE_SIZE, 3, num_classes)
    rng = np.random.default_rng(0)
    arrays = {part: rng.standard_normal(shape, np.float32) for part, shape in shapes_of(model).items()}
    save_npz(path, model, unflatten(arrays))


def _measure(path: Path, model: str) -> dict[str, float]:
    ended = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path), model], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"loading {path.name} of {model} failed: {reason}")
    measured: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    command.run_command(main, extra="train")
