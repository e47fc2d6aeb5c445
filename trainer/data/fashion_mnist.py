"""Fashion-MNIST: 70,000 photographs of clothes (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), 28×28 grey pixels.

The published 60,000 training images give 55,000 for training and 5,000 for validation; the 10,000 test images stay as they are.
"""

from pathlib import Path

from trainer.data.idx import read_pair
from trainer.data.source import Dataset, assemble, split_off

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts them
_VALIDATION = 5_000
_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def load(data_dir: str) -> Dataset:
    """The data set from IDX files in `data_dir`, or where Debian's package puts them."""
    folder = Path(data_dir) if data_dir else _DEBIAN_FOLDER
    published, test = read_pair(folder, "train"), read_pair(folder, "t10k")
    # A twelfth is 5,000 of the real 60,000; files cut down for a trial keep the proportion.
    held_out = min(_VALIDATION, len(published) // 12)
    train, validation = split_off(published.images, published.labels, (held_out,), seed=0)
    return assemble("fashion_mnist", train, validation, test, _CLASSES)
