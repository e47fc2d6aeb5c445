"""Ready arrays from .npy files, as a model takes them."""

from typing import Any, Literal

import numpy as np

from serving.command import UserError

Array = np.ndarray[Any, np.dtype[Any]]


def read_array(flag: str, path: str, axes: str, kind: Literal["floats", "integers"]) -> Array:
    """The array in the .npy file `path`, with as many axes as `axes` names (such as "B H W C").

    Raises:
      UserError: when it cannot be read, or has another form, no elements, or numbers of another `kind`.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--{flag}={path} cannot be read as .npy: {' '.join(str(error).split())}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"--{flag}={path} is an archive of arrays; give a .npy file with one array {axes}")
    numbers = np.floating if kind == "floats" else np.integer
    if array.ndim != len(axes.split()) or not array.size or not np.issubdtype(array.dtype, numbers):
        raise UserError(
            f"--{flag}={path} is {array.dtype} {array.shape}; give {kind} of shape ({axes.replace(' ', ', ')})"
        )
    return array


def normalised_images(path: str) -> Array:
    """Ready model input from a .npy file, float32 (B, H, W, C), its pixels already in the model's range.

    Raises:
      UserError: when it is anything else, or holds values that are no finite numbers.
    """
    images = read_array("inputs", path, "B H W C", "floats").astype(np.float32)
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise UserError(
            f"--inputs={path} is {images.shape}, channels first; give (B, H, W, C): array.transpose(0, 2, 3, 1)"
        )
    if not np.isfinite(images).all():
        raise UserError(f"--inputs={path} holds values that are not finite; a model answers nonsense to them")
    return images
