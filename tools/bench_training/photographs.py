"""JPEG files of the sizes that ImageNet's have, cut from larger photographs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_SIZES = (
    (500, 375),
    (375, 500),
    (500, 333),
    (400, 400),
)  # (width, height); the first is ImageNet's commonest


def write(folder: Path, pictures: Sequence[Image.Image], count: int) -> list[Path]:
    """`count` parts at random places under `folder`, a sub-folder for each photograph, as JPEG of quality 90."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        which = number % len(pictures)
        picture = pictures[which]
        width, height = (min(*pair) for pair in zip(_SIZES[number // len(pictures) % 4], picture.size))
        left, top = (
            int(rng.integers(whole - part + 1)) for whole, part in zip(picture.size, (width, height))
        )
        path = folder / f"{which:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.crop((left, top, left + width, top + height)).save(path, "JPEG", quality=90)
        paths.append(path)
    return paths
