"""Makes shards of a data set, to be read at random from fast or far storage: array_record files of images as they are.

python -m tools.convert --dataset=folder:photos --output=shards       then --config.dataset='array_record:shards/*.array_record'
python -m tools.convert --dataset=cifar10 --data_dir=downloads --output=shards --shards=4
python -m tools.convert --dataset=pairs:photos.jsonl --output=shards  then --config.dataset='pairs:shards/*.array_record'
python -m tools.convert --dataset=folder:photos --output=shards --workers=8
python -m tools.convert --dataset=folder:/mnt/photos --output=/mnt/shards --beam='--runner=FlinkRunner --flink_master=host:8081'

Splits and classes are those that training on the data set itself would see. Images that cannot be read are left out and named.
What was interrupted goes on with the files that are not there yet. --beam has the workers of a runner write the files: they need
Vitforge, and see data set and output under the same paths.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError


def main(argv: list[str]) -> dict[str, object]:
    """Converts; the result says how many examples went into how many files."""
    values = flags.FlagValues()
    flags.DEFINE_string("dataset", None, "As config.dataset names it.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "As config.data_dir.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for the shards; empty, or not there yet.", flag_values=values)
    flags.DEFINE_integer(
        "shards",
        0,
        "Files of each split; 0: as many as makes them 256 MiB.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers", 0, "Processes that write files; 0: this one.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string(
        "beam",
        "",
        "Options of an Apache Beam pipeline that writes the files; in place of --workers.",
        flag_values=values,
    )
    extra = command.parse_flags(values, argv, required=["dataset", "output"])
    flag = {name: values[name].value for name in values}
    command.require_usage(
        extra, bool(flag["dataset"] and flag["output"]), "--dataset and --output are needed"
    )
    if flag["beam"] and flag["workers"]:
        raise UserError(
            f"--beam and --workers={flag['workers']} exclude each other; a runner's options say how many"
        )
    output = Path(flag["output"])
    command.require_folder(output, "--output")

    # Imported late, so that --help answers at once.
    from trainer.data import shard_writers, write_shards

    def run(shards: Sequence[write_shards.Shard]) -> None:
        if flag["beam"]:
            shard_writers.by_beam(shards, shlex.split(flag["beam"]))
        else:
            shard_writers.in_processes(shards, flag["workers"])

    splits = write_shards.write(flag["dataset"], flag["data_dir"], output, flag["shards"], run)
    return {"output": flag["output"], **splits}


if __name__ == "__main__":
    command.run_command(main, extra="train")
