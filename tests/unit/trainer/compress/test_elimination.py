"""Which inputs of a layer can be spared, one after another, when the rest is refitted."""

import numpy as np
import pytest

from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import elimination, streams
from trainer.compress.moments import Array


def _layer(inputs: int, outputs: int) -> tuple[Array, Array]:
    """Covariance of correlated inputs, and the kernel that reads them."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, inputs)) @ rng.standard_normal((inputs, inputs))
    return np.cov(rows.T), rng.standard_normal((inputs, outputs))


def _error(covariance: Array, kernel: Array, kept: list[int]) -> float:
    """What the best fit on `kept` inputs misses of all inputs' outputs."""
    crossed = covariance[kept] @ kernel
    explained = np.trace(crossed.T @ np.linalg.solve(covariance[np.ix_(kept, kept)], crossed))
    return float(np.trace(kernel.T @ covariance @ kernel) - explained)


def test_each_input_that_is_given_up_is_the_one_whose_refit_misses_least() -> None:
    covariance, kernel = _layer(7, 3)
    found = elimination.ranks(covariance, kernel, 1e-12)
    left = list(range(7))
    for place in range(6):
        errors = {one: _error(covariance, kernel, [other for other in left if other != one]) for one in left}
        gone = min(errors, key=errors.__getitem__)
        assert found[gone] == place
        left.remove(gone)
    assert sorted(found) == list(range(7))


def test_of_two_inputs_alike_one_goes_first_and_the_other_stays_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    covariance, kernel = _layer(8, 3)
    covariance, kernel = (
        covariance[np.ix_([*range(8), 0], [*range(8), 0])],
        3 * np.vstack([kernel, kernel[:1]]),
    )
    found = elimination.ranks(covariance, kernel, 1e-6)
    assert min(found[0], found[8]) == 0
    assert max(found[0], found[8]) > 1
    monkeypatch.setattr(elimination, "_STEPS", 3)  # several at a time, as of a large layer
    assert sorted(elimination.ranks(covariance, kernel, 1e-6)) == list(range(9))


def test_neurons_of_every_layer_are_ranked_and_all_else_is_left_alone() -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, 64, 1)
    scores = {
        str(index): {"heads": np.arange(2.0), "mlp": np.zeros(block.mlp_dim)}
        for index, block in enumerate(SMALL.blocks)
    }
    found = elimination.neurons(SMALL, params, scores, streams.walk(SMALL, params, images, 32), 32, 1e-3)
    for name, own in found.items():
        assert sorted(own["mlp"]) == list(range(len(scores[name]["mlp"])))
        assert own["heads"] is scores[name]["heads"]
