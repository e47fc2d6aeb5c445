"""What a running server gives its callers: throughput and latency of Vision/Classify on encoded images.

    python -m tools.bench_serving --server=HOST:PORT --model=NAME[,NAME...] --images=FOLDER [--concurrency=4]

How it measures stands in `tools.serving_load`.
"""

import dataclasses
from pathlib import Path

from absl import flags

from serving import command
from serving.client import VisionClient
from serving.command import UserError
from tools.serving_load import Load, measure

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def main(argv: list[str]) -> dict[str, object]:
    """Measures a server that runs already; the result has one entry per model."""
    values = flags.FlagValues()
    flags.DEFINE_string("server", "localhost:8001", "HOST:PORT of a running server.", flag_values=values)
    flags.DEFINE_list("model", [], "Names of the models to measure.", flag_values=values)
    flags.DEFINE_string("images", None, "Folder of images to send.", flag_values=values)
    flags.DEFINE_integer(
        "concurrency", 4, "Callers at a time for throughput.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "images_per_request", 16, "Images in one request for throughput.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float("window_s", 3.0, "Seconds of throughput load per model and round.", flag_values=values)
    extra = command.parse_flags(values, argv, required=["model", "images"])
    complete = bool(values["model"].value and values["images"].value)
    command.require_usage(extra, complete, "--model and --images are needed")
    folder = Path(values["images"].value)
    images = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    if not images:
        raise UserError(f"--images={folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
    load = Load(values["concurrency"].value, values["images_per_request"].value, values["window_s"].value)
    with VisionClient(values["server"].value) as client:
        speeds = measure(client, values["model"].value, images, load)
    return {
        "load": dataclasses.asdict(load),
        "models": {model: dataclasses.asdict(speed) for model, speed in speeds.items()},
    }


if __name__ == "__main__":
    command.run_command(main)
