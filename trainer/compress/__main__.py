"""Make a trained model smaller to a budget, and ship it: score, search, cut, repair, distil, quantize, export, check, report.

python -m trainer.compress --checkpoint=PATH --config=configs/compress.py --workdir=DIR [--config.budget.latency_p50_ms=5]
python -m trainer.compress --checkpoint=PATH --config=configs/compress.py --workdir=DIR --config.until=cut    no training step
python -m trainer.compress --model=NAME --weights=PATH --config=configs/compress.py --workdir=DIR    published weights
python -m trainer.compress --weights=REPO/NAME/VERSION --config=configs/compress.py --workdir=DIR    a bundle

Run again, it goes on where it stopped.
"""

from pathlib import Path

from absl import flags

from serving import command
from trainer.compress import origin
from trainer.workdir import hold_new


def main(argv: list[str]) -> dict[str, object]:
    """Compresses; the result is that of `trainer.compress.job.compress`."""
    from trainer import (
        config,
    )  # not above: a smaller installation says in one line that it lacks what recipes need

    recipe, overrides, rest = config.split_config_args(argv)
    values = flags.FlagValues()
    config.define_flag(values)
    origin.define(values)
    flags.DEFINE_string(
        "workdir", None, "Folder for the models, the bundle and the report.", flag_values=values
    )
    extra = command.parse_flags(
        values,
        rest,
        required=["config", "workdir"],
        more_help=lambda: config.keys_help(config.Compression, recipe),
    )
    teacher, folder = origin.of(values), values["workdir"].value
    needed = f"--config, --workdir and {origin.NEEDED} are needed"
    command.require_usage(extra, bool(recipe and folder and teacher), needed)
    assert teacher is not None  # required above
    settings = config.compression(str(recipe), overrides)
    workdir = Path(folder)
    command.require_folder(workdir, "--workdir")

    # Imported late: a bad configuration is refused at once, and --help answers without starting JAX.
    from trainer.compress.job import compress

    with hold_new(workdir, "compressing"):
        return compress(settings, teacher, workdir)


if __name__ == "__main__":
    command.run_command(main, extra="train")
