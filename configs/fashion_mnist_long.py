"""The teachers of the compression benchmarks: Fashion-MNIST in patches of 4×4, trained until 90 of 100 are right.

python -m trainer.main --config=configs/fashion_mnist_long.py:base --workdir=runs/base
python -m trainer.main --config=configs/fashion_mnist_long.py:large --workdir=runs/large
"""

import ml_collections

_ROLES = ("base", "large")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`base` has 1.2 million parameters, `large` 6.3 million.

    Muon learns faster, and what it makes loses several times as much when it is cut (README, "in one shot").
    """
    role = arg or "base"
    if role not in _ROLES:
        raise ValueError(f"argument {role!r} must be one of {', '.join(_ROLES)}")
    base = role == "base"
    config = ml_collections.ConfigDict()
    config.dataset = "fashion_mnist"
    config.image_size = 28
    config.aug = "shift_flip"
    config.model = "ViT-fashion_4" if base else "ViT-fashion_4-large"
    config.batch = 64 if base else 128
    config.batch_eval = 500
    config.total_steps = 16_000 if base else 12_000  # 19 or 28 times all images
    config.warmup_steps = 600
    config.optim = "adamw"
    config.base_lr = 1e-3 if base else 5e-4
    config.wd = 0.05
    config.sd = 0.0 if base else 0.1
    config.eval_every = 2000
    config.checkpoint_every = 1000
    config.keep_last = 1
    config.log_every = 50
    return config
