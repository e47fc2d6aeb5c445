"""Accuracy of a checkpoint on one split of its data set, with a 95 % interval.

python -m trainer.evaluate --checkpoint=PATH [--split=test] [--dataset=NAME] [--data_dir=DIR]
"""

from absl import flags

from serving import command

_SPLITS = ("train", "validation", "test")


def main(argv: list[str]) -> dict[str, object]:
    """Evaluates; the result names checkpoint, data set, split, examples, top-1 and its interval."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A training or compression workdir, or one of its checkpoints.",
        flag_values=values,
    )
    flags.DEFINE_enum("split", "test", _SPLITS, "Which part of the data set.", flag_values=values)
    flags.DEFINE_string(
        "dataset", "", "Data set; the one of the checkpoint when not given.", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "Folder of the data set's files, where it needs one.", flag_values=values
    )
    flags.DEFINE_integer("batch", 256, "Images per batch.", lower_bound=1, flag_values=values)
    extra = command.parse_flags(values, argv, required=["checkpoint"])
    command.require_usage(extra, bool(values["checkpoint"].value), "--checkpoint is needed")
    flag = {name: values[name].value for name in ("checkpoint", "split", "dataset", "data_dir", "batch")}
    return _evaluate(**flag)


def _evaluate(checkpoint: str, split: str, dataset: str, data_dir: str, batch: int) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    from trainer.checkpoint import load
    from trainer.data.datasets import open_again, open_dataset
    from trainer.distributed.bootstrap import join_job
    from trainer.evaluation import check_classes, evaluate, one_process_mesh
    from trainer.interval import wilson
    from trainer.step import make_eval_step

    join_job()
    loaded = load(checkpoint)
    name = dataset or loaded.meta["dataset"]
    same = name == loaded.meta["dataset"]
    data = open_again(loaded.meta, data_dir) if same else open_dataset(name, data_dir)
    model = loaded.classifier
    check_classes(loaded, data)
    mesh = one_process_mesh()
    step = make_eval_step(model, loaded.preprocess, mesh)
    shards = mesh.shape["data"]
    rounded = -(-batch // shards) * shards
    score = evaluate(step, loaded.params, getattr(data, split), loaded.preprocess, rounded, mesh)
    low, high = wilson(score["top1"], int(score["count"]))
    return {
        "checkpoint": checkpoint,
        "stage": loaded.meta["stage"],
        "dataset": name,
        "split": split,
        "examples": int(score["count"]),
        "top1": score["top1"],
        "top1_low": low,
        "top1_high": high,
        "loss": score["loss"],
    }


if __name__ == "__main__":
    command.run_command(main, extra="train")
