"""Flax NNX model definitions. Outside this room parameters are a plain nested dict of arrays, and a model is its description."""
