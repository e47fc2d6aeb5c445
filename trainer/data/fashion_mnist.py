"""Fashion-MNIST: 70,000 photographs of clothes (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), 28×28 grey pixels.

The published 60,000 training images give 55,000 for training and 5,000 for validation; the 10,000 test images stay as they are.
"""

from pathlib import Path

from trainer.data.idx import read_pair
from trainer.data.source import Dataset, assemble, split_off

# Where Debian's package dataset-fashion-mnist puts them.
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_INSTALL = "apt-get install dataset-fashion-mnist, or give the folder of its IDX files with --config.data_dir"
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load(data_dir: str) -> Dataset:
    """The data set from IDX files in `data_dir`, or where Debian's package puts them.

    Raises:
      UserError: naming the file that is missing or damaged.
    """
    folder = Path(data_dir).expanduser() if data_dir else _DEBIAN_FOLDER
    published, test = (read_pair(folder, part, _INSTALL) for part in ("train", "t10k"))
    # A twelfth is 5,000 of the published 60,000; files cut down for a trial keep the proportion.
    train, validation = split_off(published.images, published.labels, (len(published) // 12,), seed=0)
    return assemble("fashion_mnist", (train, validation, test), _CLASSES)
