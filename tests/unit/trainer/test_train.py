"""The training loop in this process; what it takes to interrupt it for real is in tests/processes."""

from pathlib import Path

import pytest

from serving.command import UserError
from tests.support import trainings
from tests.support.small_models import save_digits
from trainer import checkpoint, config
from trainer.checkpoint import Card, State
from trainer.train import train


class _KilledError(Exception):
    """Stands for a kill at the moment when a save begins."""


@pytest.mark.parametrize(("eval_every", "evaluated"), [(2, [2]), (3, [])])
def test_when_a_checkpoint_is_written_the_record_up_to_it_is_complete(
    eval_every: int, evaluated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that goes on from it would lack lines of the steps before."""

    def kill(self: checkpoint.TrainCheckpoints, state: State, card: Card) -> None:
        raise _KilledError

    save_digits(tmp_path / "small")
    values = {
        "shape_of": str(tmp_path / "small"),
        "image_size": 8,
        "total_steps": 4,
        "warmup_steps": 1,
        "batch": 32,
    }
    every = {"log_every": 1, "eval_every": eval_every, "checkpoint_every": 2}
    overrides = [(name, str(value)) for name, value in (values | every).items()]
    monkeypatch.setattr(checkpoint.TrainCheckpoints, "save", kill)
    with pytest.raises(_KilledError):
        train(config.experiment("configs/digits.py:scratch", overrides), tmp_path / "run")
    record = trainings.record(tmp_path / "run")
    assert [line["step"] for line in record if "loss" in line] == [1, 2]
    assert [line["step"] for line in record if "validation_top1" in line] == evaluated


def test_bad_input_leaves_no_workdir_behind(tmp_path: Path) -> None:
    overrides = [("shape_of", str(tmp_path / "nowhere"))]
    with pytest.raises(UserError, match="no checkpoint under"):
        train(config.experiment("configs/digits.py:scratch", overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
