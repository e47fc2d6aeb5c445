"""Any model of the family by name, from scratch or from published weights, with the settings of "How to train your ViT?".

    python -m trainer.main --config=configs/augreg.py:Ti_16 --workdir=runs/ti16 --config.data_dir=downloads
    python -m trainer.main --config=configs/augreg.py:S_16 --workdir=runs/s16 --config.data_dir=downloads \
        --config.pretrained=S_16.npz --config.image_size=384
    python -m trainer.main --config=configs/augreg.py:R_Ti_16 --workdir=runs/r-ti16 --config.data_dir=downloads \
        --config.teacher_model=B_16 --config.teacher_weights=runs/b16 --config.distill_weight=0.5
    python -m trainer.main --config=configs/augreg.py:B_16 --workdir=runs/b16 \
        --config.dataset='array_record:shards/*.array_record' --config.optim=adamw --config.base_lr=1e-3 --config.wd=0.1 \
        --config.batch=4096 --config.total_epochs=300 --config.warmup_steps=10000 --config.aug=medium --config.mixup=0.5 \
        --config.dtype=bfloat16 --config.scan_blocks=True

Values are those of fine-tuning there (arXiv:2106.10270, section 3.4): SGD with momentum 0.9, batches of 512, 10,000 steps. `wd` is
decoupled and multiplied by the learning rate with every optimiser. The data set is CIFAR-10, whose archive is looked for in
`data_dir`, unless `dataset` names another. Not run to its end: it is for accelerators; `make test` runs a few steps of it.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The argument is the model's name: Ti_16 (default), S_16, B_16, L_16, R_Ti_16, or any of `python -m tools.models`."""
    config = ml_collections.ConfigDict()
    config.model = arg or "Ti_16"
    config.dataset = "cifar10"
    config.image_size = 224
    config.aug = "light"
    config.batch = 512
    config.batch_eval = 512
    config.total_steps = 10_000
    config.warmup_steps = 500
    config.optim = "sgd"
    config.base_lr = 0.03
    config.wd = 0.0
    config.eval_every = 500
    config.checkpoint_every = 500
    config.log_every = 50
    return config
