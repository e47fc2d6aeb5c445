"""Write a bundle that serves: ONNX, manifest, golden answers, digests. Refused unless it says what the live model says.

python -m trainer.export --checkpoint=runs/student --output=models/student/1 [--precision=auto]
python -m trainer.export --model=Ti/16 --weights=Ti_16.npz --output=models/ti16/1 [--precision=int8 --images=pictures/]
python -m trainer.export --model=LiT-B16B --weights=LiT-B16B.npz --output=models/lit/1      writes lit-image/1 and lit-text/1
"""

import os
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from serving.bundle import check_target
from serving.command import UserError
from trainer.precisions import AUTO, PRECISIONS
from trainer.weights import asked


def main(argv: list[str]) -> dict[str, object]:
    """Exports; the result is that of `trainer.export.job.export`."""
    values = flags.FlagValues()
    _define_model(values)
    _define_bundle(values)
    extra = command.parse_flags(values, argv, required=["output"])
    given = {name: values[name].value for name in values}
    complete = bool((given["checkpoint"] or given["weights"]) and given["output"])
    command.require_usage(extra, complete, "--checkpoint (or --weights) and --output are needed")
    if given["checkpoint"] and given["weights"]:
        raise UserError("--checkpoint and --weights exclude each other; give one of them (see --help)")

    # Imported late: --help answers without starting JAX.
    from trainer.export import job

    names = ("precision", "calibration_examples", "min_agreement", "min_top1", "threads", "batch")
    request = job.Request(target=Path(given["output"]), **{name: given[name] for name in names})
    check_target(request.target)  # before anything is read
    return job.export(_subject(given), request)


def _define_model(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A training workdir, or one of its checkpoints; of a compression WORKDIR/distil, or WORKDIR, its cut of before.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "weights",
        "",
        "Published weights instead: .npz or .safetensors, a path or a URL that fsspec knows.",
        flag_values=values,
    )
    asked.define_identity(values)
    asked.define_side(values)
    flags.DEFINE_list(
        "images", [], "Pictures and folders of them to prove and calibrate --weights on.", flag_values=values
    )
    flags.DEFINE_string(
        "vocab",
        "",
        "The vocabulary of a LiT pair (.txt of BERT, .model of SentencePiece), to go into its text bundle.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of the data set's files; the one of the checkpoint when not given.",
        flag_values=values,
    )


def _define_bundle(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "output", None, "The bundle to write: REPO/NAME/VERSION, version 1, 2, 3 ...", flag_values=values
    )
    flags.DEFINE_enum(
        "precision",
        "fp32",
        [*PRECISIONS, AUTO],
        "Precision of the model file: int8 products (faster where the CPU has VNNI); int8 weights alone (as fast as fp32, a "
        "quarter of the file); or auto, the fastest of them that keeps --min_agreement and --min_top1, as measured here.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "calibration_examples",
        512,
        "Images for int8 ranges: of the training images, or at most so many of --images.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "min_agreement",
        0.95,
        "Anything but fp32 is refused when it shares fewer first labels than this with the live model.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "min_top1",
        0.0,
        "Anything but fp32 is refused when its validation top-1, a fraction, is less than this; of a --checkpoint.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch", 1, "Images in a call when auto measures.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "threads",
        len(os.sched_getaffinity(0)),
        "Threads of the runtime that checks and measures.",
        lower_bound=1,
        flag_values=values,
    )


def _subject(given: dict[str, Any]) -> Any:
    from trainer.export import subject

    if given["checkpoint"]:
        return subject.from_checkpoint(given["checkpoint"], given["data_dir"], given["vocab"])
    weights = asked.load(
        given["weights"],
        given["model"],
        image_size=asked.side(given["image_size"]),
        sha256=given["sha256"],
        allow=given["allow"],
    )
    return subject.from_weights(weights, given["images"], vocab=given["vocab"])


if __name__ == "__main__":
    command.run_command(main, extra="train")
