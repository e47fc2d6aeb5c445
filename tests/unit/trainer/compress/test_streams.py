"""A model walked branch by branch says what it says when it is called as a whole."""

import numpy as np
import pytest

from tests.support.small_families import CLS, DEIT, HYBRID, SINGLE
from tests.support.small_models import SMALL, UNEVEN, random_params, smooth_images
from trainer.compress import streams
from trainer.description import ViT
from trainer.models.build import bind

MODELS = {
    "gap": SMALL,
    "cls": CLS,
    "uneven": UNEVEN,
    "deit": DEIT,
    "hybrid": HYBRID,
    "both": SINGLE["hybrid with a distillation token"],
}
ROUNDING = 1e-4  # of logits of about 10 in float32


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_logits_branch_by_branch_are_those_of_the_whole_model(model: ViT) -> None:
    params, images = random_params(model), smooth_images(model, 5)
    whole = np.asarray(bind(model, params)(images))
    np.testing.assert_allclose(streams.logits(model, params, images, 2), whole, atol=ROUNDING)


@pytest.mark.parametrize(("model", "heads"), [(SMALL, 1), (CLS, 1), (DEIT, 2)], ids=["gap", "cls", "deit"])
def test_there_is_one_feature_for_every_head(model: ViT, heads: int) -> None:
    params, images = random_params(model), smooth_images(model, 5)
    stream = streams.embed(model, params, images, 2)
    assert streams.features(model, params, stream, 2).shape == (5, heads, model.width)
