"""1,797 handwritten digits of 8×8 grey pixels that ship inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its test
part). Split here, once and for all, into 1,257 for training, 180 for validation and 360 for testing.
"""

import numpy as np

from serving.command import UserError
from trainer.data.source import Dataset, assemble, split_off

_VALIDATION, _TEST = 180, 360
_WHITE = 16  # the pixels count from 0 to 16


def load(data_dir: str) -> Dataset:
    """The digits.

    Raises:
      UserError: for a `data_dir`, because they come with the installation.
    """
    from sklearn import datasets

    if data_dir:
        what = "the digits come with the installation; leave it empty"
        raise UserError(f"data_dir={data_dir!r} is set, but {what}")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / _WHITE)).astype(np.uint8)
    splits = split_off(images, labels.astype(np.int32), (_VALIDATION, _TEST), seed=0)
    return assemble("digits", splits, tuple("0123456789"))
