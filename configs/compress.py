"""Cut a trained teacher to a quarter of its parameters, repair it, distil it, and ship it as a bundle with a report.

    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py --workdir=runs/small
    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py --workdir=runs/pruned --config.until=cut
    python -m trainer.compress --checkpoint=runs/fashion-teacher --config=configs/compress.py:fashion_mnist \
        --workdir=runs/fashion-small --config.budget.macs=0.25
    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py --workdir=runs/stated \
        --config.shape.num_layers=4 --config.shape.num_heads=2 --config.shape.mlp_dim=128
    python -m trainer.compress --weights=runs/models/teacher/1 --config=configs/compress.py --workdir=runs/of-a-bundle

In place of these, each alone: `--config.budget.mib=0.5`, `--config.budget.latency_p50_ms=0.3` or `latency_p99_ms` (at
`budget.batch`, `budget.threads` and `budget.precision`, on this machine); `--config.budget.max_drop=0.005` for the smallest
model that loses half a point at most.
"""

import ml_collections

_DATASETS = ("digits", "fashion_mnist")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The argument is the data set whose training images calibrate: digits (default) or fashion_mnist."""
    dataset = arg or "digits"
    if dataset not in _DATASETS:
        raise ValueError(f"argument {dataset!r} must be one of {', '.join(_DATASETS)}")
    config = ml_collections.ConfigDict()
    config.dataset = dataset
    config.budget = ml_collections.ConfigDict({"params": 0.25})
    config.distil = _distil(dataset)
    return config


def _distil(dataset: str) -> ml_collections.ConfigDict:
    """As the student's recipe of the data set has it."""
    digits = dataset == "digits"
    return ml_collections.ConfigDict(
        {
            "total_steps": 400 if digits else 600,
            "warmup_steps": 40 if digits else 60,
            "batch": 64 if digits else 128,
            "batch_eval": 128 if digits else 500,
            "base_lr": 5e-4,
            "wd": 0.05,
            "aug": "shift" if digits else "shift_flip",
            "distill_weight": 0.9,
            "eval_every": 200 if digits else 300,
            "checkpoint_every": 200 if digits else 250,
        }
    )
