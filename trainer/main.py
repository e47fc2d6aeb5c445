"""Train, fine-tune or distil, as the recipe says; run again, it goes on where it stopped.

python -m trainer.main --config=configs/digits.py:teacher --workdir=runs/teacher [--config.key=value ...]
"""

from pathlib import Path

from absl import flags

from serving import command


def main(argv: list[str]) -> dict[str, object]:
    """Trains; the result is that of `trainer.train.train`."""
    from trainer import (
        config,
    )  # not above: a smaller installation says in one line that it lacks what recipes need

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
    complete = bool(recipe and values["workdir"].value)
    command.require_usage(extra, complete, "--config=FILE.py and --workdir=DIR are needed")
    experiment = config.experiment(str(recipe), overrides)
    workdir = Path(values["workdir"].value)
    command.require_folder(workdir, "--workdir")

    # Imported late: a bad configuration is refused at once, and --help answers without starting JAX.
    from trainer.allocator import keep_freed_memory
    from trainer.distributed.bootstrap import join_job
    from trainer.train import train

    keep_freed_memory()
    join_job()
    return train(experiment, workdir)


if __name__ == "__main__":
    command.run_command(main, extra="train")
