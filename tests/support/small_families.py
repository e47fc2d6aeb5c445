"""Every family small: hybrids, DeiT, Mixer, text towers and a pair of towers, with images and texts for them."""

import dataclasses
from typing import Any

import numpy as np

from tests.support.small_models import SMALL, smooth_images
from trainer.description import Block, Mixer, Stem, TextTower, TwoTowers, ViT

Array = np.ndarray[Any, np.dtype[Any]]

CLS = dataclasses.replace(SMALL, pooling="cls")
DEIT = dataclasses.replace(CLS, distilled=True)
# Sides of 37 and 50 are odd at one halving or another; 4 x 4 cells of 2 x 2 patches remain, and a remainder that fills no patch.
HYBRID = dataclasses.replace(CLS, image_size=(37, 50), channels=3, patch_size=2, stem=Stem(32, (2, 1)))
MIXER = Mixer((9, 8), 3, 4, 16, 2, 7, 24, 10)
TRANSFORMER = TextTower("transformer", 50, 6, 6, 16, SMALL.blocks, 12)
BERT = TextTower("bert", 50, 9, 6, 16, SMALL.blocks, 12, norm_eps=1e-12)
PAIR = TwoTowers(dataclasses.replace(CLS, num_classes=0), dataclasses.replace(BERT, embed_dim=16))

SINGLE: dict[str, ViT | Mixer | TextTower] = {
    "DeiT": DEIT,
    "DeiT without heads": dataclasses.replace(DEIT, num_classes=0),
    "ViT without a head": dataclasses.replace(CLS, num_classes=0),
    "averaging ViT without a head": dataclasses.replace(SMALL, num_classes=0),
    "hybrid": HYBRID,
    "hybrid of a stem alone": dataclasses.replace(HYBRID, stem=Stem(32, ()), patch_size=5),
    "hybrid with a distillation token": dataclasses.replace(HYBRID, distilled=True),
    "hybrid of a cut stem": dataclasses.replace(HYBRID, stem=Stem(64, (2, 1), groups=(8, 32, 20))),
    "hybrid of timm": dataclasses.replace(HYBRID, stem=Stem(32, (1, 1), 1e-5, 1e-8, "variance")),
    "hybrid of large epsilons": dataclasses.replace(HYBRID, stem=Stem(32, (1,), 0.1, 0.3)),
    "hybrid of large epsilons on the variance": dataclasses.replace(
        HYBRID, stem=Stem(32, (1,), 0.1, 0.3, "variance")
    ),
    "Mixer": MIXER,
    "Mixer without a head": dataclasses.replace(MIXER, num_classes=0, gelu="erf", norm_eps=0.1),
    "text transformer": TRANSFORMER,
    "text transformer without a head": dataclasses.replace(TRANSFORMER, embed_dim=0),
    "BERT": BERT,
    "BERT without a head": dataclasses.replace(BERT, embed_dim=0, gelu="erf"),
    "uneven BERT": dataclasses.replace(
        BERT, blocks=(Block(2, 4, 8, 24), Block(1, 8, 3, 0), Block(0, 0, 0, 40)), norm_eps=0.1
    ),
}
PAIRS = {
    "pair": PAIR,
    "pair with heads and a transformer": TwoTowers(
        dataclasses.replace(HYBRID, num_classes=12), dataclasses.replace(TRANSFORMER, embed_dim=12)
    ),
}


def inputs_for(model: ViT | Mixer | TextTower, count: int, seed: int = 0) -> Array:
    """Images or texts for `model`."""
    return texts(model, count, seed) if isinstance(model, TextTower) else smooth_images(model, count, seed)


def texts(model: TextTower, count: int, seed: int = 0) -> Array:
    """Tokens (count, T) int32: texts of every length, from a full one down to padding alone, and one that begins with padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, model.vocab_size, (count, model.max_tokens), dtype=np.int32)
    for row in range(count):
        tokens[row, model.max_tokens - row % (model.max_tokens + 1) :] = 0
    tokens[-1] = [0, *rng.integers(1, model.vocab_size, model.max_tokens - 1)]
    return tokens
