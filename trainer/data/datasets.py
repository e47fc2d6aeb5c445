"""Data sets by the name that a configuration gives them. A new one is a file of its own and a line here."""

import difflib

from serving.command import UserError
from trainer.data import digits, fashion_mnist
from trainer.data.source import Dataset

_DATASETS = {"digits": digits.load, "fashion_mnist": fashion_mnist.load}


def open_dataset(name: str, data_dir: str = "") -> Dataset:
    """The data set called `name`, its files from `data_dir` where it needs some.

    Raises:
      UserError: for an unknown name (with the nearest), or files that are missing or damaged.
    """
    if name not in _DATASETS:
        near = difflib.get_close_matches(name, _DATASETS, n=1, cutoff=0.0)
        raise UserError(f"unknown data set {name!r}; nearest is {near[0]!r}, all are {', '.join(_DATASETS)}")
    return _DATASETS[name](data_dir)
