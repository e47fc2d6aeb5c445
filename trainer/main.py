"""Train, fine-tune or distil, as the recipe says; run again, it goes on where it stopped.

python -m trainer.main --config=configs/digits.py:teacher --workdir=runs/teacher [--config.key=value ...]
"""

from pathlib import Path

from serving import command


def main(argv: list[str]) -> dict[str, object]:
    """Trains; the result is that of `trainer.train.train`."""
    # Not above: a smaller installation says in one line that it lacks what recipes need.
    from trainer import arguments

    experiment, given = arguments.training(argv)
    workdir = Path(given)
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
