"""Pictures from files and folders, in any format that Pillow reads, as model input."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from serving import preprocess
from serving.command import UserError, progress
from serving.preprocess import ImageError, PreprocessSpec
from trainer.data.source import Array


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The files among `paths`, and in their folders every file that a picture's name ends like, in the order of names.

    Raises:
      UserError: for a path that does not exist, or a folder without pictures.
    """
    Image.init()  # fills in the endings of all formats that Pillow reads
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"--images: {path} does not exist; give image files or folders of them")
        pictures = [path] if path.is_file() else _pictures(path)
        if not pictures:
            raise UserError(
                f"--images: {path} holds no pictures (by their names' endings); give another folder"
            )
        found += pictures
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in Image.EXTENSION
    )


def read_pictures(paths: Sequence[Path], spec: PreprocessSpec) -> Array:
    """The pictures as model input, float32 (B, H, W, C).

    Raises:
      UserError: naming the file that is no picture.
    """
    fitted = []
    with progress(len(paths), "images") as bar:
        for path in paths:
            try:
                pixels = preprocess.decode(path.read_bytes(), spec, formats=None)
                fitted.append(preprocess.fit(pixels, spec))
            except (ImageError, OSError) as error:
                raise UserError(f"--images: {path}: {error}") from error
            bar.advance()
    return preprocess.normalise(np.stack(fitted), spec)
