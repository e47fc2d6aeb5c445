"""Published weights on a data set of your own: another resolution, other classes, a head that begins at zero.

    python -m trainer.main --config=configs/finetune.py:digits --workdir=runs/finetuned \
        --config.model=Ti/16 --config.pretrained=Ti_16.npz
    python -m trainer.main --config=configs/finetune.py:fashion_mnist --workdir=runs/finetuned \
        --config.model=R_Ti_16 --config.pretrained=R_Ti_16.npz --config.image_size=96

Then cut, export and serve runs/finetuned like any other run. Time and result depend on the weights: see README.
"""

import ml_collections

_DATASETS = ("digits", "fashion_mnist")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Fine-tuning on the data set `arg`; name the weights as config.pretrained and their model as config.model."""
    dataset = arg or "digits"
    if dataset not in _DATASETS:
        raise ValueError(f"argument {dataset!r} must be one of {', '.join(_DATASETS)}")
    config = ml_collections.ConfigDict()
    config.dataset = dataset
    config.image_size = 64
    config.aug = "shift" if dataset == "digits" else "shift_flip"
    config.model = "ViT-Ti_16"
    config.batch = 64
    config.batch_eval = 120
    config.total_steps = 200
    config.warmup_steps = 20
    config.base_lr = 3e-4
    config.wd = 0.05
    config.eval_every = 100
    config.checkpoint_every = 100
    return config
