"""Probes of frozen features."""

from pathlib import Path

import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_models import SMALL, random_params, save_digits
from trainer import probe, probing
from trainer.probing import Features


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "model"
    save_digits(path, params=random_params(SMALL))
    return path


def test_even_drawn_weights_tell_digits_apart(workdir: Path) -> None:
    result = probe.main([f"--checkpoint={workdir}", "--examples=600"])
    assert (result["features"], result["train_examples"], result["test_examples"]) == (16, 600, 360)
    assert 0.5 < result["linear_top1"] < 1  # type: ignore[operator]
    assert 0.4 < result["neighbours_top1"] < 1  # type: ignore[operator]
    assert result["linear_strength"] in probing._STRENGTHS


def clouds(seed: int, each: int) -> Features:
    """Two clouds far apart."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(size=(each, 3)) + [9, 0, 0], rng.normal(size=(each, 3)) + [0, 9, 0]])
    return Features(values.astype(np.float32), np.repeat([0, 1], each).astype(np.int32))


def test_what_lies_apart_is_told_apart() -> None:
    train, validation, test = (clouds(seed, 40) for seed in range(3))
    assert probing.linear_probe(train, validation, test)[0] == 1.0
    assert probing.nearest_neighbours(train, test, 5) == 1.0


def test_a_near_neighbour_outvotes_two_far_ones() -> None:
    train = Features(np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), np.array([0, 1, 1]))
    asked = Features(np.array([[1.0, 0.05]]), np.array([0]))
    assert probing.nearest_neighbours(train, asked, 3) == 1.0


def test_what_cannot_be_probed_is_refused(workdir: Path) -> None:
    with pytest.raises(UserError, match="--neighbours=50 is above the 20 training images"):
        probe.main([f"--checkpoint={workdir}", "--examples=20", "--neighbours=50"])
    with pytest.raises(UserError, match="--checkpoint, or --weights with --model and --dataset, is needed"):
        probe.main(["--weights=Ti_16.npz"])
