import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import forward_scores, scores
from trainer.models.build import flatten


@pytest.mark.parametrize("kind", forward_scores.KINDS)
def test_every_unit_has_a_score_and_a_silent_one_scores_least(kind: str) -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, 80)
    mlp = params["blocks"]["0"]["mlp"]
    mlp["fc1"]["kernel"][:, 3], mlp["fc1"]["bias"][3] = 0, 0
    found = scores.score(SMALL, params, images, kind, 0, 40)
    block = SMALL.blocks[0]
    shapes = {name: np.shape(value) for name, value in found["0"].items()}
    assert shapes == {
        "heads": (block.num_heads,),
        "query_key": (block.num_heads, block.qk_dim),
        "value": (block.num_heads, block.v_dim),
        "attention": (),
        "mlp": (block.mlp_dim,),
        "mlp_branch": (),
        "block": (),
    }
    assert all((np.asarray(value) >= 0).all() and np.any(value) for value in flatten(found).values())
    assert np.argmin(found["0"]["mlp"]) == 3


def test_what_others_predict_costs_variance_but_not_obs() -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, 80)
    mlp = params["blocks"]["0"]["mlp"]
    mlp["fc1"]["kernel"][:, 1], mlp["fc1"]["bias"][1] = mlp["fc1"]["kernel"][:, 0], mlp["fc1"]["bias"][0]
    variance, obs = (
        scores.score(SMALL, params, images, kind, 0, 40)["0"]["mlp"] for kind in ("variance", "obs")
    )
    # A twin predicts its twin but for the damping of 1 % of the mean variance.
    assert (obs[:2] < 0.5 * variance[:2]).all()


def test_a_score_that_is_not_finite_is_refused_with_its_layer_and_kind() -> None:
    with pytest.raises(UserError, match="obs score of mlp in block 1 is not finite"):
        scores.require_finite({"0": {"mlp": np.ones(2)}, "1": {"mlp": np.array([1, np.nan])}}, "obs")
