"""1,797 handwritten digits of 8×8 grey pixels that ship inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its test
part). Split here, once and for all, into 1,257 for training, 180 for validation and 360 for testing.
"""

import importlib.util
from pathlib import Path

import numpy as np

from serving.command import UserError
from trainer.data.source import Dataset, assemble, split_off

_VALIDATION, _TEST = 180, 360
_WHITE = 16  # the pixels count from 0 to 16


def load(data_dir: str, skip: bool = False) -> Dataset:
    """The digits.

    Raises:
      UserError: for a `data_dir`, because they come with the installation, and when they are missing there.
    """
    if data_dir:
        what = "the digits come with the installation; leave it empty"
        raise UserError(f"data_dir={data_dir!r} is set, but {what}")
    table = np.loadtxt(_file(), delimiter=",")
    images = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / _WHITE)).astype(np.uint8)
    splits = split_off(images, table[:, -1].astype(np.int32), (_VALIDATION, _TEST), seed=0)
    return assemble("digits", splits, tuple("0123456789"), skip)


def _file() -> Path:
    """The table inside scikit-learn, 64 pixels and a label a line. To import scikit-learn for it would take a second."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets/data/digits.csv.gz" if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(
            f"the digits are not there ({path or 'scikit-learn is not installed'}); install vitforge[train]"
        )
    return path
