"""What a model says of a whole split."""

import numpy as np
import pytest

from serving import preprocess
from tests.support.small_models import DIGITS_SPEC, SMALL, random_params
from tests.support.small_models import logits as said_at_once
from trainer.compress import validation
from trainer.data.datasets import open_dataset
from trainer.data.source import ImageSource


@pytest.mark.parametrize("whole", [False, True], ids=["branch by branch", "compiled as a whole"])
def test_images_are_prepared_in_portions_and_every_answer_is_at_its_place(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """77 images: two portions of 32, each of two batches, and what is left."""
    monkeypatch.setattr(validation, "_PREPARED", 47)
    monkeypatch.setattr(validation, "WORTH_COMPILING", 1 if whole else 1_000)
    data, portions = open_dataset("digits").validation, []
    prepare = preprocess.prepare_pixels

    def counted(*arguments: object) -> object:
        portions.append(prepare(*arguments))  # type: ignore[arg-type]
        return portions[-1]

    monkeypatch.setattr(preprocess, "prepare_pixels", counted)
    source, params = ImageSource(data.images[:77], data.labels[:77]), random_params(SMALL)
    found = validation.logits(SMALL, params, DIGITS_SPEC, source, 16)
    assert [len(portion) for portion in portions] == [32, 32, 13]
    wanted = said_at_once(SMALL, params, preprocess.normalise(source.images, DIGITS_SPEC))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
