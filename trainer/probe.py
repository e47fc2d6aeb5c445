"""What frozen features know: a linear probe and nearest neighbours, on what the head of a model reads.

python -m trainer.probe --checkpoint=PATH [--dataset=NAME] [--neighbours=20]
python -m trainer.probe --model=Ti/16 --weights=Ti_16.npz --dataset=cifar10 --data_dir=downloads --image_size=224

The probe is a logistic regression whose strength of regularisation is chosen on the validation images; a neighbour's vote counts by
its likeness, exp(cos / 0.07), as in Wu et al. 2018 (arXiv:1805.01978, section 3.4).
"""

from typing import Any

from absl import flags

from serving import command
from serving.command import UserError


def main(argv: list[str]) -> dict[str, object]:
    """Probes; the result holds top-1 on the test split of both, and of the model's own head where it has one for these classes."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", "", "A workdir of ours, or one of its checkpoints.", flag_values=values)
    flags.DEFINE_string("model", "", "In place of it: a model's name, with --weights.", flag_values=values)
    flags.DEFINE_string("weights", "", "A published .npz or .safetensors, path or URL.", flag_values=values)
    flags.DEFINE_integer(
        "image_size", 0, "Pixels; 0: as the weights were trained.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string("dataset", "", "Data set; the checkpoint's own when not given.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of the data set's files.", flag_values=values)
    flags.DEFINE_integer(
        "neighbours", 20, "Of the nearest-neighbour vote.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "examples", 0, "Training images to learn from; 0: all.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer("batch", 256, "Images per batch.", lower_bound=1, flag_values=values)
    extra = command.parse_flags(values, argv)
    checkpoint, weights = values["checkpoint"].value, values["weights"].value
    fine = bool(checkpoint) != bool(weights) and (not weights or bool(values["dataset"].value))
    command.require_usage(extra, fine, "--checkpoint, or --weights with --model and --dataset, is needed")
    return _probe({name: values[name].value for name in values})


def _probe(flag: dict[str, Any]) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    import numpy as np

    from trainer import probing
    from trainer.data.datasets import open_again, open_dataset
    from trainer.weights import asked

    size = (flag["image_size"],) * 2 if flag["image_size"] else None
    path = flag["checkpoint"] or flag["weights"]
    frozen = asked.load(path, flag["model"], image_size=size, head="remove")
    if flag["dataset"]:
        data = open_dataset(flag["dataset"], flag["data_dir"])
    else:
        from trainer.checkpoint import load_card

        data = open_again(load_card(path).meta, flag["data_dir"])
    model = probing.frozen_model(frozen, path)
    chosen = np.random.RandomState(0).permutation(len(data.train))[: flag["examples"] or None]
    if len(chosen) < flag["neighbours"]:
        raise UserError(
            f"--neighbours={flag['neighbours']} is above the {len(chosen)} training images; give fewer"
        )
    train, validation, test = (
        probing.features(model, source, flag["batch"], places)
        for source, places in ((data.train, np.sort(chosen)), (data.validation, None), (data.test, None))
    )
    linear, strength = probing.linear_probe(train, validation, test)
    return {
        "weights": path,
        "dataset": data.name,
        "features": int(train.values.shape[1]),
        "train_examples": len(train.labels),
        "test_examples": len(test.labels),
        "linear_top1": linear,
        "linear_strength": strength,
        "neighbours": flag["neighbours"],
        "neighbours_top1": probing.nearest_neighbours(train, test, flag["neighbours"]),
    }


if __name__ == "__main__":
    command.run_command(main, extra="train")
