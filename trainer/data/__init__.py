"""Input: data sets, augmentation, the Grain pipeline. Only `global_batch` knows jax; the rest can run in worker processes."""
