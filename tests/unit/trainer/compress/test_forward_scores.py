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


@pytest.mark.parametrize("kind", ["fisher", "variance"])
def test_activations_that_overflow_are_refused_with_their_layer(kind: str) -> None:
    """Finite weights, as a training that diverged leaves them, whose products are not."""
    params = random_params(SMALL)
    fc1 = params["blocks"]["0"]["mlp"]["fc1"]
    params["blocks"]["0"]["mlp"]["fc1"] = {**fc1, "kernel": np.full_like(fc1["kernel"], 3e38)}
    with pytest.raises(
        UserError, match="layer 1: what the model makes of the calibration images holds NaN or infinity"
    ):
        scores.score(SMALL, params, smooth_images(SMALL, 64), kind, seed=0, batch=32)


def test_a_score_that_is_not_finite_is_refused_with_its_layer_and_kind() -> None:
    with pytest.raises(UserError, match="obs score of mlp in block 1 is not finite"):
        scores.require_finite({"0": {"mlp": np.ones(2)}, "1": {"mlp": np.array([1, np.nan])}}, "obs")
