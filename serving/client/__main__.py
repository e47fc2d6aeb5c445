"""Classifies images over gRPC.

    python -m serving.client --server=HOST:PORT --model=NAME IMAGE…

A table of labels goes to stderr, one JSON object to stdout.
"""

import sys
from dataclasses import asdict

from absl import flags

from serving import command
from serving.client import Label, VisionClient

# Images in one request: enough to fill a batch, few enough to stay far below any limit on a message.
_CHUNK = 32


def main(argv: list[str]) -> dict[str, object]:
    """Runs the command; see the module."""
    values = flags.FlagValues()
    flags.DEFINE_string("server", "localhost:8001", "HOST:PORT of the server.", flag_values=values)
    flags.DEFINE_string("model", None, "Name of the model, as the server lists it.", flag_values=values)
    flags.DEFINE_string("version", "", "Version of the model; empty is the newest.", flag_values=values)
    flags.DEFINE_integer("top_k", 5, "Labels to show for each image.", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "timeout_s", 30.0, "Seconds to wait for an answer.", lower_bound=0.0, flag_values=values
    )
    images = command.parse_flags(values, argv, required=["model"])
    if not values["model"].value:
        raise command.UserError("--model is missing: name the model to ask, as in --model=student")
    if not images:
        raise command.UserError("no image given: add the paths of PNG or JPEG files behind the flags")
    with VisionClient(values["server"].value, timeout_s=values["timeout_s"].value) as client:
        found: list[list[Label]] = []
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            found += client.classify(
                chunk, values["model"].value, values["top_k"].value, version=values["version"].value
            )
    print(_table(images, found), file=sys.stderr)
    results = [
        {"image": image, "labels": [asdict(label) for label in labels]}
        for image, labels in zip(images, found, strict=True)
    ]
    return {"model": values["model"].value, "results": results}


def _table(images: list[str], found: list[list[Label]]) -> str:
    width = max(map(len, images))
    return "\n".join(
        f"{image:<{width}}  "
        + "  ".join(f"{label.name or label.index} {label.probability:.1%}" for label in labels)
        for image, labels in zip(images, found, strict=True)
    )


if __name__ == "__main__":
    command.run_command(main)
