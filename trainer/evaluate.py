"""Accuracy of a checkpoint on one split of its data set: top-1 with a 95 % interval, top-5, loss, calibration, the worst classes.

python -m trainer.evaluate --checkpoint=PATH [--split=test] [--dataset=NAME] [--data_dir=DIR]
python -m trainer.evaluate --checkpoint=PATH --report=FOLDER        every class, all confusions, and a plot of both
"""

from pathlib import Path

from absl import flags

from serving import command

_SPLITS = ("train", "validation", "test")
_WORST = 5


def main(argv: list[str]) -> dict[str, object]:
    """Evaluates; the result names checkpoint, data set, split and examples, and holds the figures."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A training workdir, or one of its checkpoints; of a compression WORKDIR/distil, or WORKDIR, its cut of before.",
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
    flags.DEFINE_string(
        "report", "", "Folder for evaluation.json, confusion.csv and evaluation.png.", flag_values=values
    )
    extra = command.parse_flags(values, argv, required=["checkpoint"])
    command.require_usage(extra, bool(values["checkpoint"].value), "--checkpoint is needed")
    names = ("checkpoint", "split", "dataset", "data_dir", "batch", "report")
    return _evaluate(**{name: values[name].value for name in names})


def _evaluate(
    checkpoint: str, split: str, dataset: str, data_dir: str, batch: int, report: str
) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    import jax

    from trainer import judging, judging_report
    from trainer.allocator import keep_freed_memory
    from trainer.checkpoint import load
    from trainer.data.datasets import open_again, open_dataset
    from trainer.distributed import rules
    from trainer.distributed.bootstrap import join_job
    from trainer.evaluation import check_classes, one_process_mesh
    from trainer.interval import wilson
    from trainer.step import make_judge_step

    keep_freed_memory()
    join_job()
    loaded = load(checkpoint)
    name = dataset or loaded.meta["dataset"]
    same = name == loaded.meta["dataset"]
    data = open_again(loaded.meta, data_dir) if same else open_dataset(name, data_dir)
    model = loaded.classifier
    check_classes(loaded, data)
    mesh = one_process_mesh()
    step = make_judge_step(model, loaded.preprocess, mesh)
    shards = mesh.shape["data"]
    rounded = -(-batch // shards) * shards
    params = rules.place(loaded.params, mesh)
    found = judging.answers(step, params, getattr(data, split), loaded.preprocess, rounded, mesh)
    examples, top1 = len(found.label), float(found.right.mean())
    low, high = wilson(top1, examples)
    classes = judging.per_class(found, data.class_names)
    worst = sorted((row for row in classes if row["examples"]), key=lambda row: row["accuracy"])[:_WORST]
    result = {
        "checkpoint": checkpoint,
        "stage": loaded.meta["stage"],
        "dataset": name,
        "split": split,
        "examples": examples,
        "top1": top1,
        "top1_low": low,
        "top1_high": high,
        "top5": float(found.within5.mean()),
        "loss": float(found.loss.mean(dtype="float64")),
        "calibration_error": judging.calibration_error(found),
        "worst_classes": {row["class"]: row["accuracy"] for row in worst},
    }
    if report and jax.process_index() == 0:
        table = judging.confusion(found, len(classes))
        judging_report.write(Path(report), result, classes, judging.reliability(found), table)
    return result


if __name__ == "__main__":
    command.run_command(main, extra="train")
