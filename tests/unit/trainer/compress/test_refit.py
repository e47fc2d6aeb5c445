"""One step of `refit` is the least squares about the present weights: compared with the dense system, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import refit, streams
from trainer.compress.moments import Array
from trainer.compress.refit import Task
from trainer.compress.streams import Branch
from trainer.models.build import Params

BRANCHES = {"attention": streams.attention_branch, "mlp": streams.mlp_branch}


def _setting(part: str, counts: Array) -> tuple[Branch, Params, Task]:
    """The first branch of that kind, moved away from where it was, with what it said before as its task."""
    params = random_params(SMALL)
    stream = streams.embed(SMALL, params, smooth_images(SMALL, len(counts), 1), 64)
    branch, block = BRANCHES[part](SMALL, SMALL.blocks[0]), params["blocks"]["0"]
    said = np.asarray(branch(block, stream)[0])
    task = Task(stream, lambda rows: jnp.asarray(said[rows]), counts, batch=64)
    return branch, _moved(block, part), task


def _moved(block: Params, part: str) -> Params:
    draw, layers = np.random.RandomState(0), dict(block[part])
    for name in streams.READERS[part]:
        layers[name] = {
            key: np.asarray(value + 0.05 * draw.randn(*value.shape), np.float32)
            for key, value in layers[name].items()
        }
    return {**block, part: layers}


def _error(branch: Branch, params: Params, task: Task) -> float:
    rows = np.arange(len(task.stream))
    left = np.asarray(task.lacking(rows) - branch(params, task.stream)[0])
    return float(np.sum(task.weights[:, None, None] * left**2))


def _flat(params: Params, part: str) -> Array:
    """Kernels over biases, reader beside reader."""
    layers = [params[part][name] for name in streams.READERS[part]]
    kernels = [np.asarray(layer["kernel"]).reshape(SMALL.width, -1) for layer in layers]
    return np.vstack([np.hstack(kernels), np.hstack([np.ravel(layer["bias"]) for layer in layers])])


@pytest.mark.parametrize("part", BRANCHES)
def test_a_step_undoes_most_of_what_a_change_of_the_readers_did(part: str) -> None:
    branch, params, task = _setting(part, np.ones(1024, np.float32))  # ten times the prior
    found = refit.look(branch, params, task)
    assert found.error == pytest.approx(_error(branch, params, task), rel=1e-4)
    assert _error(branch, refit.step(branch, params, task, found), task) < 0.25 * found.error


def test_a_step_is_the_least_squares_about_the_weights_each_image_as_often_as_it_counts() -> None:
    counts = np.where(np.arange(48) < 24, 3.0, 1.0).astype(np.float32)
    branch, params, task = _setting("mlp", counts)
    found = refit.look(branch, params, task)
    moved = _flat(refit.step(branch, params, task, found), "mlp") - _flat(params, "mlp")

    fc1, rows = params["mlp"]["fc1"], np.arange(48)

    def said(kernel: jax.Array, bias: jax.Array) -> jax.Array:
        own = {**params, "mlp": {**params["mlp"], "fc1": {"kernel": kernel, "bias": bias}}}
        return branch(own, task.stream)[0]

    by_kernel, by_bias = jax.jacobian(said, argnums=(0, 1))(fc1["kernel"], fc1["bias"])
    jacobian = np.concatenate([by_kernel, np.asarray(by_bias)[..., None, :]], axis=-2)
    roots = np.sqrt(counts)[:, None, None]
    system = (roots[..., None, None] * jacobian).reshape(-1, moved.size).astype(np.float64)
    left = (roots * np.asarray(task.lacking(rows) - branch(params, task.stream)[0])).ravel()
    held = np.kron(found.read, np.diag(found.heard)) * refit.PRIOR_IMAGES / 48
    wanted = np.linalg.solve(system.T @ system + held, system.T @ left)
    # Conjugate gradients end early; what they have not found yet is what matters least to the branch.
    assert np.linalg.norm(system @ (moved.ravel() - wanted)) < 0.05 * np.linalg.norm(system @ wanted)


def test_neurons_that_nobody_hears_stay_as_they_are() -> None:
    branch, params, task = _setting("mlp", np.ones(48, np.float32))
    kernel = np.array(params["mlp"]["fc2"]["kernel"])
    kernel[3] = 0
    params["mlp"] = {**params["mlp"], "fc2": {**params["mlp"]["fc2"], "kernel": kernel}}
    new = refit.step(branch, params, task, refit.look(branch, params, task))
    np.testing.assert_array_equal(_flat(new, "mlp")[:, 3], _flat(params, "mlp")[:, 3])
    assert np.isfinite(_flat(new, "mlp")).all()
    assert (_flat(new, "mlp") != _flat(params, "mlp")).any(axis=0).sum() == SMALL.blocks[0].mlp_dim - 1


@pytest.mark.parametrize("wreck", [0.0, np.nan])
def test_a_turn_that_leaves_more_or_nothing_that_is_a_number_is_not_taken(wreck: float) -> None:
    branch, params, task = _setting("mlp", np.ones(256, np.float32))

    def wrecked(moved: Params) -> Params:
        second = moved["mlp"]["fc2"]
        kernel = (np.asarray(second["kernel"]) * wreck).astype(np.float32)
        return {**moved, "mlp": {**moved["mlp"], "fc2": {**second, "kernel": kernel}}}

    assert refit.by_turns(branch, params, task, wrecked, 2) is params
    taken = refit.by_turns(branch, params, task, lambda moved: moved, 2)
    assert _error(branch, taken, task) < 0.5 * _error(branch, params, task)
