"""MNIST (LeCun, Cortes and Burges) and Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 28×28 grey pixels.

The published 60,000 training images give 55,000 for training and 5,000 for validation; the 10,000 test images stay as they are.
"""

from pathlib import Path

import numpy as np

from serving.command import UserError
from trainer.data.idx import read_pair
from trainer.data.source import Dataset, assemble, split_off

# Where Debian's package dataset-fashion-mnist puts them.
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_OWN_FOLDER = "give the folder of its IDX files with --config.data_dir"
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_DIGITS = tuple("0123456789")


def load_fashion_mnist(data_dir: str, skip: bool = False) -> Dataset:
    """Fashion-MNIST from IDX files in `data_dir`, or where Debian's package puts them.

    Raises:
      UserError: naming the file that is missing or damaged.
    """
    folder = Path(data_dir).expanduser() if data_dir else _DEBIAN_FOLDER
    return _load(
        "fashion_mnist", folder, _CLOTHES, f"apt-get install dataset-fashion-mnist, or {_OWN_FOLDER}", skip
    )


def load_mnist(data_dir: str, skip: bool = False) -> Dataset:
    """MNIST from IDX files in `data_dir`; raises as `load_fashion_mnist` does."""
    if not data_dir:
        raise UserError(f"mnist is in no package; fetch it and {_OWN_FOLDER}")
    return _load("mnist", Path(data_dir).expanduser(), _DIGITS, _OWN_FOLDER, skip)


def _load(name: str, folder: Path, classes: tuple[str, ...], remedy: str, skip: bool) -> Dataset:
    published, test = (read_pair(folder, part, remedy) for part in ("train", "t10k"))
    # A twelfth is 5,000 of the published 60,000; files cut down for a trial keep the proportion.
    train, validation = split_off(
        np.asarray(published.images), published.labels, (len(published) // 12,), seed=0
    )
    return assemble(name, (train, validation, test), classes, skip)
