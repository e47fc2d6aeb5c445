"""Configuration: recipes and overrides in, frozen and validated dataclasses out. Imports no jax.

recipe (configs/*.py) → overrides (--config.key=value) → dataclass → text and hash
"""

from trainer.config.compression import Budget, Calibration, Compression, Shape
from trainer.config.experiment import Experiment, MeshShape
from trainer.config.fields import ConfigError, config_hash, from_text, resolved_text
from trainer.config.keys import keys_help
from trainer.config.load import compression, define_flag, experiment, split_config_args
from trainer.config.recipe import load_recipe
from trainer.config.resume import COMPUTING, MAY_CHANGE_ON_RESUME, changes, refuse_changes

__all__ = [
    "COMPUTING",
    "MAY_CHANGE_ON_RESUME",
    "Budget",
    "Calibration",
    "Compression",
    "ConfigError",
    "Experiment",
    "MeshShape",
    "Shape",
    "changes",
    "compression",
    "config_hash",
    "define_flag",
    "experiment",
    "from_text",
    "keys_help",
    "load_recipe",
    "refuse_changes",
    "resolved_text",
    "split_config_args",
]
