"""What a model says of images, arrays and texts: the live model, or a bundle run by its own runtime."""
