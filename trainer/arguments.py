"""What a training is asked for on its command line: read by `trainer.main`, and by a launcher before it starts any process."""

from collections.abc import Sequence

from absl import flags

from serving import command
from trainer import config


def training(argv: Sequence[str]) -> tuple[config.Experiment, str]:
    """(Configuration, workdir) of `python -m trainer.main` with these arguments; nothing is touched.

    Raises:
      UserError: when one is missing, unknown or wrong.
    """
    recipe, overrides, rest = config.split_config_args(argv)
    values = flags.FlagValues()
    config.define_flag(values)
    flags.DEFINE_string(
        "workdir", None, "Folder of this run: checkpoints and metrics.jsonl.", flag_values=values
    )
    extra = command.parse_flags(
        values,
        rest,
        required=["config", "workdir"],
        more_help=lambda: config.keys_help(config.Experiment, recipe),
    )
    workdir = values["workdir"].value
    command.require_usage(extra, bool(recipe and workdir), "--config=FILE.py and --workdir=DIR are needed")
    command.require_no_url(workdir, "--workdir")
    return config.experiment(str(recipe), overrides), workdir
