"""From a configuration to a bundle: data, models, training, compression, export."""

__version__ = "0.1.0"
