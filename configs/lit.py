"""A text tower for an image tower that stays as it is: zero-shot classes and retrieval (LiT, arXiv:2111.07991).

    python -m trainer.main --config=configs/lit.py --workdir=runs/lit --config.dataset=pairs:photos.jsonl \
        --config.text.vocab=vocab.txt --config.model=B_16 --config.pretrained=B_16.npz --config.image_size=224
    python -m trainer.main --config=configs/lit.py --workdir=runs/lit --config.dataset=pairs:photos.jsonl \
        --config.text.vocab=vocab.txt --config.pretrained=runs/colours --config.image_size=32 \
        --config.contrastive_loss=sigmoid
    python -m trainer.zero_shot --checkpoint=runs/lit --vocab=vocab.txt --dataset=fashion_mnist --templates="a photo of a {}."

`photos.jsonl` holds {"image": "cat.jpg", "text": "a cat"} a line; pictures from files have colours, and so must the image tower.
A vocabulary is BERT's .txt or SentencePiece's .model. Every image of the global batch is compared with every text of it: the
larger the batch, the better. Not run at its full size here.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """There are no variants."""
    if arg:
        raise ValueError(f"argument {arg!r}: this recipe takes none")
    config = ml_collections.ConfigDict()
    config.dataset = "pairs:"
    config.image_size = 224
    config.text = ml_collections.ConfigDict({"vocab": ""})
    config.batch = 1024
    config.batch_eval = 256
    config.total_steps = 10_000
    config.warmup_steps = 500
    config.optim = "adamw"
    config.base_lr = 1e-3
    config.wd = 1e-4
    config.eval_every = 500
    config.checkpoint_every = 500
    config.log_every = 50
    return config
