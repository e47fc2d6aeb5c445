"""Cut a trained teacher to a quarter of its parameters, repair it, distil it, and ship it as a bundle with a report.

    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py --workdir=runs/small
    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py --workdir=runs/pruned --config.until=cut
    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py:fashion_mnist --workdir=runs/pruned \
        --config.budget.macs=0.25
    python -m trainer.compress --checkpoint=runs/teacher --config=configs/compress.py --workdir=runs/pruned \
        --config.shape.num_layers=4 --config.shape.num_heads=2 --config.shape.mlp_dim=128

    python -m trainer.compress --weights=runs/models/teacher/1 --config=configs/compress.py --workdir=runs/pruned

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
    config.seed = 0
    config.dataset = dataset
    config.data_dir = ""
    config.budget = ml_collections.ConfigDict(
        {
            "params": 0.25,
            "macs": 0.0,
            "mib": 0.0,
            "latency_p50_ms": 0.0,
            "latency_p99_ms": 0.0,
            "min_top1": 0.0,
            "max_drop": 0.0,
            "batch": 1,
            "threads": 0,
            "precision": "fp32",
            "timing_seconds": 30.0,
            "profile": "",
        }
    )
    config.shape = ml_collections.ConfigDict(
        {
            "target": "",
            "num_layers": 0,
            "hidden_size": 0,
            "num_heads": 0,
            "qk_dim": 0,
            "v_dim": 0,
            "mlp_dim": 0,
            "stem_groups": 0,
            "merge": 0,
        }
    )
    config.search = "budget"
    config.sensitivity = True
    config.merge = "auto"
    config.score = "fisher"
    config.calibration = ml_collections.ConfigDict({"examples": 1024, "batch": 64, "labelled": False})
    config.ridge = 0.001
    config.round_mlp = 8
    config.round_head_dim = 4
    config.round_width = 16
    config.halving = ml_collections.ConfigDict({"candidates": 0, "steps": 100})
    config.distil = _distil(dataset)
    config.export = ml_collections.ConfigDict(
        {"name": "student", "precision": "", "calibration_examples": 512, "min_agreement": 0.98}
    )
    config.until = "export"
    return config


def _distil(dataset: str) -> ml_collections.ConfigDict:
    """As the student's recipe of the data set has it."""
    digits = dataset == "digits"
    return ml_collections.ConfigDict(
        {
            "rungs": 1,
            "total_steps": 400 if digits else 600,
            "warmup_steps": 40 if digits else 60,
            "batch": 64 if digits else 128,
            "batch_eval": 128 if digits else 500,
            "accum_steps": 1,
            "optim": "adamw",
            "base_lr": 5e-4,
            "decay_type": "cosine",
            "wd": 0.05,
            "do": 0.0,
            "sd": 0.0,
            "label_smoothing": 0.0,
            "grad_norm_clip": 1.0,
            "aug": "shift" if digits else "shift_flip",
            "mixup": 0.0,
            "teacher_epochs": 0,
            "teacher_cache": "",
            "distill_loss": "soft",
            "distill_weight": 0.9,
            "distill_weight_end": -1.0,
            "distill_temperature": 2.0,
            "distill_temperature_end": -1.0,
            "distill_decay": "cosine",
            "feature_weight": 0.0,
            "feature_loss": "cosine",
            "feature_blocks": "",
            "qat_steps": 0,
            "eval_every": 200 if digits else 300,
            "checkpoint_every": 200 if digits else 250,
            "keep_last": 2,
            "log_every": 10,
            "workers": 0,
        }
    )
