"""Write a bundle that serves: ONNX, manifest, golden answers, digests. Refused unless it says what the live model says.

python -m trainer.export --checkpoint=runs/student --output=models/student/1 [--precision=int8]
"""

import os
from pathlib import Path

from absl import flags

from serving import command


def main(argv: list[str]) -> dict[str, object]:
    """Exports; the result is that of `trainer.export.job.export`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A training or compression workdir, or one of its checkpoints.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "The bundle to write: REPO/NAME/VERSION, version 1, 2, 3 ...", flag_values=values
    )
    flags.DEFINE_enum(
        "precision", "fp32", ("fp32", "int8"), "Precision of the model file.", flag_values=values
    )
    flags.DEFINE_integer(
        "calibration_examples", 512, "Training images for int8 ranges.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float(
        "min_agreement",
        0.95,
        "int8 is refused when it shares fewer first labels than this with the live model.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of the data set's files; the one of the checkpoint when not given.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "threads",
        len(os.sched_getaffinity(0)),
        "Threads of the runtime that checks and measures.",
        lower_bound=1,
        flag_values=values,
    )
    extra = command.parse_flags(values, argv)
    complete = bool(values["checkpoint"].value and values["output"].value)
    command.require_usage(extra, complete, "--checkpoint and --output are needed")

    # Imported late: --help answers without starting JAX.
    from trainer.export.job import Request, export

    names = ("checkpoint", "precision", "calibration_examples", "min_agreement", "data_dir", "threads")
    return export(
        Request(target=Path(values["output"].value), **{name: values[name].value for name in names})
    )


if __name__ == "__main__":
    command.run_command(main)
