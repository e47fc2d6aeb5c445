"""The teachers of the compression benchmarks: Fashion-MNIST in patches of 4×4, trained until 91 of 100 are right.

python -m trainer.main --config=configs/fashion_mnist_long.py:base --workdir=runs/base
python -m trainer.main --config=configs/fashion_mnist_long.py:large --workdir=runs/large
"""

import ml_collections

_MODELS = {"base": "ViT-fashion_4", "large": "ViT-fashion_4-large"}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """`base` has 1.2 million parameters, `large` 6.3 million."""
    role = arg or "base"
    if role not in _MODELS:
        raise ValueError(f"argument {role!r} must be one of {', '.join(_MODELS)}")
    config = ml_collections.ConfigDict()
    config.dataset = "fashion_mnist"
    config.image_size = 28
    config.aug = "shift_flip"
    config.model = _MODELS[role]
    config.batch = 128
    config.batch_eval = 500
    config.total_steps = 6_000 if role == "base" else 12_000  # 13 or 26 times all images
    config.warmup_steps = 300 if role == "base" else 600
    config.optim = "muon" if role == "base" else "adamw"
    config.base_lr = 1.5e-3 if role == "base" else 5e-4
    config.wd = 0.05
    config.sd = 0.0 if role == "base" else 0.1
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.keep_last = 1
    config.log_every = 50
    return config
