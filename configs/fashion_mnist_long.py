"""The teachers of the compression benchmarks: Fashion-MNIST in patches of 4×4, trained until 90 of 100 are right.

python -m trainer.main --config=configs/fashion_mnist_long.py:base --workdir=runs/base
python -m trainer.main --config=configs/fashion_mnist_long.py:large --workdir=runs/large
"""

import ml_collections

_ROLES = {
    # 19 times all images, a little over an hour on two AVX-512 cores.
    "base": {
        "model": "ViT-fashion_4",
        "aug": "shift_flip",
        "batch": 64,
        "total_steps": 16_000,
        "warmup_steps": 600,
        "optim": "adamw",
        "base_lr": 1e-3,
        "eval_every": 2000,
        "checkpoint_every": 1000,
    },
    # Four times all images, under two hours on two AVX2 cores: Muon needs few of them, and augmentation many.
    "large": {
        "model": "ViT-fashion_4-large",
        "aug": "none",
        "batch": 128,
        "total_steps": 2000,
        "warmup_steps": 100,
        "optim": "muon",
        "base_lr": 1.5e-3,
        "eval_every": 1000,
        "checkpoint_every": 100,
    },
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`base` has 1.2 million parameters, `large` 6.3 million.

    Muon learns faster, and what it makes loses more when it is cut to a quarter or less (README, "in one shot").
    """
    role = arg or "base"
    if role not in _ROLES:
        raise ValueError(f"argument {role!r} must be one of {', '.join(_ROLES)}")
    config = ml_collections.ConfigDict(_ROLES[role])
    config.dataset = "fashion_mnist"
    config.image_size = 28
    config.batch_eval = 500
    config.wd = 0.05
    config.keep_last = 1
    config.log_every = 50
    return config
