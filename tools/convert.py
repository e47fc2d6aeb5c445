"""Makes shards of a data set, to be read at random from fast or far storage: array_record files of images as they are.

python -m tools.convert --dataset=folder:photos --output=shards       then --config.dataset='array_record:shards/*.array_record'
python -m tools.convert --dataset=cifar10 --data_dir=downloads --output=shards --shards=4

Splits and classes are those that training on the data set itself would see. Images that cannot be read are left out and named.
"""

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
        "shards", 0, "Files of each split; 0: as many as makes them 256 MiB.", flag_values=values
    )
    extra = command.parse_flags(values, argv, required=["dataset", "output"])
    dataset, folder, shards = (values[name].value for name in ("dataset", "output", "shards"))
    command.require_usage(extra, bool(dataset and folder), "--dataset and --output are needed")
    if shards < 0:
        raise UserError(f"--shards={shards} must be 0 or above")
    output = Path(folder)
    command.require_folder(output, "--output")

    # Imported late, so that --help answers at once.
    from trainer.data.datasets import open_dataset
    from trainer.data.write_shards import write

    data = open_dataset(dataset, values["data_dir"].value, "skip")
    files = write(data, output, shards)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    written = {split: {"examples": len(source), "files": files[split]} for split, source in splits.items()}
    return {"output": folder, "classes": len(data.class_names), **written}


if __name__ == "__main__":
    command.run_command(main, extra="train")
