"""The model description: everything needed to rebuild a model's arrays, and nothing else.

A small tagged union of frozen dataclasses; a named variant is a value of it. Checkpoints, plans and bundles carry it as JSON.
Standard library only, at the bottom of `trainer`.
"""

from trainer.description.costs import block_macs, block_params, macs, param_count
from trainer.description.mixer import Mixer
from trainer.description.serialise import (
    Classifier,
    Model,
    from_json,
    require_classifier,
    require_vit,
    to_json,
)
from trainer.description.stem import GROUPS, Convolution, Stem, unit_convolutions
from trainer.description.text import TextTower
from trainer.description.towers import TwoTowers
from trainer.description.variants import named, variant_names
from trainer.description.vit import Block, ViT, merging, uniform, with_groups, without_merging, without_stem

__all__ = [
    "GROUPS",
    "Block",
    "Classifier",
    "Convolution",
    "Mixer",
    "Model",
    "Stem",
    "TextTower",
    "TwoTowers",
    "ViT",
    "block_macs",
    "block_params",
    "from_json",
    "macs",
    "merging",
    "named",
    "param_count",
    "require_classifier",
    "require_vit",
    "to_json",
    "uniform",
    "unit_convolutions",
    "variant_names",
    "with_groups",
    "without_merging",
    "without_stem",
]
