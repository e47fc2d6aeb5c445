"""What a training would need and do on a pod that is not here, by compiling its very step for it."""
