"""A data set of TensorFlow Datasets as that library prepares it, tests/golden/tfds: 60 digits to train on and 20 to test.

It runs in an environment of its own, from the root of the repository:

    python3.11 -m venv DIR
    DIR/bin/pip install tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 array-record scikit-learn
    DIR/bin/python -m tools.dev.tfds_golden

tests/unit/trainer/test_data_tfds.py reads them, without TensorFlow.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

OUTPUT = "tests/golden/tfds"


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """Grey images of 8×8 pixels with a label."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        image, label = tfds.features.Image(shape=(8, 8, 1)), tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0, 60), "test": self._generate_examples(60, 80)}

    def _generate_examples(self, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
        digits = load_digits()
        for place in range(start, end):
            pixels = np.uint8(digits.images[place][..., None] * 15)
            yield place, {"image": pixels, "label": int(digits.target[place])}


if __name__ == "__main__":
    TinyDigits(data_dir=OUTPUT, file_format="array_record").download_and_prepare()
