import dataclasses
from typing import Any

import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_models import SMALL, UNEVEN, logits, random_params, smooth_images
from trainer.compress import target
from trainer.compress.plan import identity
from trainer.compress.repair import Repair, cut
from trainer.compress.scores import score
from trainer.config.compression import Shape
from trainer.description import ViT, named, uniform
from trainer.models.build import flatten

NOTHING = Shape()


def _digits(**changes: Any) -> ViT:
    model = named("ViT-digits", (8, 8), 1, 10)
    assert isinstance(model, ViT)
    return dataclasses.replace(model, **changes)


def _shape(**sizes: Any) -> Shape:
    return dataclasses.replace(NOTHING, **sizes)


def test_a_named_model_states_every_size_and_the_teacher_keeps_what_is_none() -> None:
    teacher = _digits(width=96, blocks=uniform(8, 6, 32, 300), pooling="cls", distilled=True)
    sizes = target.asked(_shape(target="digits"), teacher)
    assert sizes == target.Sizes(6, 64, 4, 16, 16, 256, 0)
    # On scores that rank units in their order, the plan's shape is the named model's but for the tokens.
    scores: Any = {str(index): {"heads": -np.arange(6.0), "mlp": -np.arange(300.0)} for index in range(8)}
    shape = target.plan(teacher, scores, {1, 4}, sizes).shape_of(teacher)
    assert (shape.width, shape.blocks) == (64, _digits().blocks)
    assert (shape.pooling, shape.distilled) == ("cls", True)


def test_a_target_of_the_teachers_own_sizes_leaves_the_plan_that_keeps_everything() -> None:
    teacher = _digits()
    sizes = target.asked(_shape(target="digits"), teacher)
    assert target.plan(teacher, {str(index): {} for index in range(6)}, set(), sizes) == identity(teacher)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"target": "digitz"}, r"unknown model 'digitz'; nearest is 'ViT-digits'"),
        ({"target": "Mixer-B_16"}, r"shape.target=Mixer-B_16 is of kind 'mixer', the teacher a ViT"),
        (
            {"target": "LiT-B16B"},
            r"shape.target=LiT-B16B is of kind .* the teacher a ViT",
        ),
        ({"target": "fashion"}, r"shape.target=fashion has patch_size 7, the teacher 4"),
        ({"target": "digits"}, r"shape.target=digits: mlp_dim=256 is above the teacher's 200; cutting only"),
        ({"hidden_size": 65}, r"shape.hidden_size=65 is above the teacher's 64"),
        ({"hidden_size": 1}, r"width 1 is impossible"),
        (
            {"qk_dim": 17, "num_layers": 7},
            r"shape.num_layers=7 is .* 6, shape.qk_dim=17 is above the teacher's 16",
        ),
    ],
)
def test_a_shape_that_no_cut_leaves_is_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        target.asked(_shape(**shape), _digits(image_size=(16, 16), blocks=uniform(6, 4, 16, 200)))


def test_dims_that_one_layer_lacks_are_refused_with_the_layer() -> None:
    sizes = target.asked(_shape(v_dim=6), UNEVEN)
    scores: Any = {str(index): {"heads": np.zeros(3), "mlp": np.zeros(40)} for index in range(4)}
    with pytest.raises(UserError, match=r"shape.v_dim=6 is above the teacher's 3 in layer 1"):
        target.plan(UNEVEN, scores, set(), sizes)


@pytest.mark.parametrize(
    "teacher",
    [SMALL, dataclasses.replace(SMALL, pooling="cls", distilled=True)],
    ids=["gap", "distilled"],
)
def test_a_shape_that_is_stated_whole_leaves_every_array_bitwise_as_it_is_and_one_below_it_has_that_shape(
    teacher: ViT,
) -> None:
    params, images = random_params(teacher), smooth_images(teacher, 128)
    scores = score(teacher, params, images, "fisher", 0, 64)
    whole = target.asked(
        _shape(num_layers=2, hidden_size=16, num_heads=2, qk_dim=8, v_dim=8, mlp_dim=32), teacher
    )
    same, _ = cut(teacher, params, target.plan(teacher, scores, set(), whole), images, Repair(1e-2, 64))
    before = flatten(params)
    assert flatten(same).keys() == before.keys()
    for name, array in flatten(same).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)

    less = target.asked(_shape(hidden_size=12, num_heads=1, qk_dim=4, v_dim=6, mlp_dim=24), teacher)
    plan = target.plan(teacher, scores, set(), less)
    student, _ = cut(teacher, params, plan, images, Repair(1e-2, 64))
    shape = plan.shape_of(teacher)
    assert (shape.width, shape.blocks[0]) == (
        12,
        dataclasses.replace(teacher.blocks[0], num_heads=1, qk_dim=4, v_dim=6, mlp_dim=24),
    )
    assert target.report(teacher, less, shape)["hidden_size"] == {"teacher": 16, "asked": 12, "actual": 12}
    assert np.isfinite(logits(shape, student, images)).all()  # the arrays have the shapes of the description
