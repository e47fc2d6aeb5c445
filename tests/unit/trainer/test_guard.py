"""Steps that would do harm are left out, and are on record."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from tests.support import small_steps
from tests.support.small_steps import Steps, batch, copied
from trainer.config import Experiment
from trainer.data.digits import load
from trainer.data.pipeline import train_batches
from trainer.guard import RECENT, judge, nothing_seen
from trainer.metrics import MetricsWriter
from trainer.skips import Skips


def judged(values: list[tuple[float, float]], sigmas: float) -> list[bool]:
    """Which of the steps with these losses and norms are taken, one after another."""
    recent, taken = nothing_seen(), []
    for loss, norm in values:
        fine, recent = judge(recent, jnp.float32(loss), jnp.float32(norm), sigmas)
        taken.append(bool(fine))
    return taken


def usual(count: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    return [(1 + 0.1 * rng.normal(), 2 + 0.1 * rng.normal()) for _ in range(count)]


@pytest.mark.parametrize("strange", [(float("nan"), 1.0), (1.0, float("inf"))])
@pytest.mark.parametrize("sigmas", [0.0, 6.0])
def test_what_is_not_finite_is_left_out_from_the_first_step_on(
    strange: tuple[float, float], sigmas: float
) -> None:
    assert judged([strange, (1.0, 2.0), strange], sigmas) == [False, True, False]


@pytest.mark.parametrize("strange", [(9.0, 2.0), (1.0, 20.0)])
def test_an_outlier_is_known_once_enough_was_seen_and_only_where_asked(strange: tuple[float, float]) -> None:
    early, known = usual(RECENT - 1), usual(RECENT)
    assert judged([*early, strange], 6.0)[-1]
    assert not judged([*known, strange], 6.0)[-1]
    assert judged([*known, strange], 0.0)[-1]
    assert judged([*known, (0.01, 0.01)], 6.0)[-1]  # below is no harm


def test_a_new_level_becomes_usual() -> None:
    taken = judged([*usual(RECENT), *[(3.0, 6.0)] * 20], 6.0)
    assert not taken[RECENT]
    assert all(taken[-10:])


def test_what_is_not_finite_does_not_count_as_usual() -> None:
    assert not judged([*usual(RECENT), (float("inf"), 1.0), (9.0, 2.0)], 6.0)[-1]


def test_a_step_left_out_changes_nothing_but_the_number() -> None:
    steps = Steps(ema_decay=0.5)
    steps.take(batch(0))
    before = copied(steps.state)
    # A weight that no number stands for: the loss is NaN, and so is every gradient.
    broken = dataclasses.replace(
        steps.state, params={**steps.state.params, "pos": steps.state.params["pos"].at[0, 0, 0].set(np.nan)}
    )
    steps.state = broken
    assert steps.take(batch(1))["skipped"] == 1
    after = copied(steps.state)
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after.opt, before.opt)
    kept = {**after.params, "pos": before.params["pos"]}
    jax.tree.map(np.testing.assert_array_equal, kept, before.params)


def record(workdir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_skipped_step_is_written_with_its_examples(tmp_path: Path) -> None:
    dataset, spec = load("").train, small_steps.DIGITS_SPEC
    batches = train_batches(
        dataset, spec, seed=5, aug="none", batch=4, start_step=0, process_index=0, process_count=1, workers=0
    )
    indices = [next(batches)["index"].tolist() for _ in range(400)]  # beyond the first epoch
    writer = MetricsWriter(tmp_path, 0, Skips(len(dataset), 5, 4))
    strange = {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(7), "skipped": jnp.bool_(True)}
    for step in (1, 3, 400):
        writer.queue(step, strange, written=False)
    writer.flush()
    assert [line["skipped_examples"] for line in record(tmp_path)] == [
        indices[step - 1] for step in (1, 3, 400)
    ]
    assert record(tmp_path)[0] == {
        "step": 1,
        "skipped_loss": None,
        "skipped_grad_norm": 7,
        "skipped_examples": indices[0],
    }


def test_a_run_that_has_left_the_finite_numbers_ends() -> None:
    skips = Skips(100, 0, 4)
    nan = {"loss": float("nan"), "grad_norm": 1.0}
    for step in range(1, 10):
        skips.entry(step, nan)
    skips.taken()
    for step in range(11, 20):
        skips.entry(step, nan)
    skips.entry(20, {"loss": 90.0, "grad_norm": 1.0})  # an outlier is finite
    for step in range(21, 30):
        skips.entry(step, nan)
    with pytest.raises(UserError, match=r"last 10 steps, to step 30, had no finite loss .* lower base_lr"):
        skips.entry(30, nan)


def test_metrics_of_a_taken_step_do_not_mention_skipping(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, Skips(100, 0, 4))
    writer.queue(1, {"loss": jnp.float32(1), "grad_norm": jnp.float32(2), "skipped": jnp.bool_(False)})
    writer.queue(
        2, {"loss": jnp.float32(1), "grad_norm": jnp.float32(2), "skipped": jnp.bool_(False)}, written=False
    )
    writer.flush()
    assert record(tmp_path) == [{"step": 1, "loss": 1, "grad_norm": 2}]
    assert isinstance(Steps().experiment, Experiment)
