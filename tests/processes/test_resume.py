"""Training that is killed, preempted or started wrongly, as real processes: nothing is lost, and the end is the same."""

import dataclasses
import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.support import trainings
from tests.support.trainings import files, start, train, wait_until
from trainer import checkpoint


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs of one configuration that several tests look at."""

    arguments: list[str]
    whole: Path  # not interrupted
    preempted: Path  # asked to stop when it had its first checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    # A kill soon after a checkpoint would lose the line that is still pending, if saving did not write it first.
    arguments = trainings.settings(trainings.small_shape(folder), log_every=10)
    code, _, log = train(folder / "whole", arguments)
    assert code == 0, log

    stopped = folder / "preempted"
    process = start(["trainer.main", f"--workdir={stopped}", *arguments])
    wait_until(lambda: bool(checkpoint.steps(stopped)), process)
    process.send_signal(signal.SIGTERM)
    code, output, log = trainings.ended(process)
    assert (code, output) == (42, ""), log
    (step,) = checkpoint.steps(stopped)[-1:]
    assert log.splitlines()[-1].startswith(
        f"error: preempted: saved step {step} in {stopped}; run the same command"
    )
    assert step < 100
    return Runs(arguments, folder / "whole", stopped)


def assert_same_end(workdir: Path, runs: Runs) -> None:
    assert checkpoint.steps(workdir)[-1] == 100
    trainings.assert_same_parameters(workdir, runs.whole)
    # The record has every line once, whichever process came to it, with the very same numbers.
    assert trainings.learnt(workdir) == trainings.learnt(runs.whole)


def test_an_uninterrupted_run_keeps_its_last_checkpoints_and_its_record(runs: Runs) -> None:
    assert checkpoint.steps(runs.whole) == [90, 100]
    assert list(trainings.losses(runs.whole)) == list(range(10, 101, 10))
    assert [line["step"] for line in trainings.record(runs.whole) if "validation_top1" in line] == [50, 100]


def test_a_run_killed_on_its_way_ends_with_the_same_parameters(runs: Runs, tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    process = start(["trainer.main", f"--workdir={workdir}", *runs.arguments])
    # Twenty steps on, so that the checkpoint which it goes on from is not the only one there was.
    wait_until(lambda: len(checkpoint.steps(workdir)) > 1, process)
    process.kill()
    assert trainings.ended(process)[0] == -signal.SIGKILL
    reached = checkpoint.steps(workdir)[-1]
    assert reached < 100

    code, output, log = train(workdir, runs.arguments)
    assert code == 0, log
    assert trainings.result(output)["resumed_from"] == reached
    assert f"resumed from step {reached}" in log
    assert_same_end(workdir, runs)


def test_a_run_killed_before_its_first_checkpoint_starts_again(runs: Runs, tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    process = start(["trainer.main", f"--workdir={workdir}", *runs.arguments])
    wait_until(lambda: (workdir / "metrics.jsonl").exists(), process)
    process.kill()
    trainings.ended(process)
    assert checkpoint.steps(workdir) == []
    code, output, log = train(workdir, runs.arguments)
    assert code == 0, log
    assert trainings.result(output)["resumed_from"] == 0
    assert_same_end(workdir, runs)


def test_a_preempted_run_goes_on_to_the_same_end(runs: Runs, tmp_path: Path) -> None:
    workdir = shutil.copytree(runs.preempted, tmp_path / "preempted")
    reached = checkpoint.steps(workdir)[-1]
    code, output, log = train(workdir, runs.arguments)
    assert code == 0, log
    assert trainings.result(output)["resumed_from"] == reached
    assert_same_end(workdir, runs)


def test_keys_that_may_change_do_not_change_the_end(runs: Runs, tmp_path: Path) -> None:
    workdir = shutil.copytree(runs.preempted, tmp_path / "preempted")
    changed = [
        "--config.checkpoint_every=7",
        "--config.batch_eval=50",
        "--config.workers=1",
        "--config.keep_last=1",
    ]
    code, _, log = train(workdir, [*runs.arguments, *changed])
    assert code == 0, log
    assert checkpoint.steps(workdir) == [100]
    trainings.assert_same_parameters(workdir, runs.whole)


def test_a_finished_run_started_again_says_the_same_and_trains_nothing(runs: Runs, tmp_path: Path) -> None:
    workdir = shutil.copytree(runs.whole, tmp_path / "whole")
    code, output, log = train(workdir, runs.arguments)
    assert code == 0, log
    said = trainings.result(output)
    assert (said["resumed_from"], said["train_images_per_s"]) == (100, None)
    assert "already complete at step 100, nothing to train; for another run give another --workdir" in log
    (last,) = (
        line for line in trainings.record(runs.whole) if line["step"] == 100 and "validation_top1" in line
    )
    assert said["validation_top1"] == last["validation_top1"]
    assert trainings.learnt(workdir) == trainings.learnt(runs.whole)
    trainings.assert_same_parameters(workdir, runs.whole)


def test_changed_keys_are_refused_by_name_and_nothing_is_lost(runs: Runs) -> None:
    before = files(runs.preempted)
    code, output, log = train(runs.preempted, [*runs.arguments, "--config.base_lr=0.5", "--config.aug=none"])
    assert (code, output) == (2, "")
    last = log.splitlines()[-1]
    assert last.startswith("error: the workdir holds the checkpoint of another run: ")
    assert "aug is 'shift' there, 'none' now" in last
    assert "base_lr is 0.01 there, 0.5 now" in last
    assert "give another --workdir" in last
    assert files(runs.preempted) == before


def test_the_workdir_of_another_command_is_refused_and_nothing_is_lost(runs: Runs, tmp_path: Path) -> None:
    other = trainings.small_shape(tmp_path)
    before = files(other)
    code, output, log = train(other, runs.arguments)
    assert (code, output) == (2, "")
    assert log.splitlines()[-1].startswith(f"error: {other} holds a trained model, not a training run; give")
    assert files(other) == before


def test_a_damaged_newest_checkpoint_is_refused_with_what_to_do_and_the_one_before_serves(
    runs: Runs, tmp_path: Path
) -> None:
    workdir = shutil.copytree(runs.whole, tmp_path / "damaged")
    for path in (workdir / "checkpoints/100/opt").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-100])
    code, _, log = train(workdir, runs.arguments)
    assert code == 2, log
    assert "checkpoints/100 cannot be restored" in log.splitlines()[-1]
    assert "remove it to go on from the one before" in log.splitlines()[-1]
    shutil.rmtree(workdir / "checkpoints/100")
    code, output, log = train(workdir, runs.arguments)
    assert code == 0, log
    assert trainings.result(output)["resumed_from"] == 90
    assert_same_end(workdir, runs)


def test_ctrl_c_saves_and_is_not_taken_for_a_preemption(runs: Runs, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    # Every thousandth step is a checkpoint: what is there afterwards was saved on request.
    arguments = [*runs.arguments, "--config.total_steps=100000", "--config.checkpoint_every=1000000"]
    process = start(["trainer.main", f"--workdir={workdir}", *arguments])
    wait_until(lambda: (workdir / "metrics.jsonl").exists() and bool(trainings.losses(workdir)), process)
    process.send_signal(signal.SIGINT)
    code, output, log = trainings.ended(process)
    assert (code, output) == (130, ""), log
    (step,) = checkpoint.steps(workdir)
    assert "Ctrl-C: saving after this step; again: ends at once" in log
    assert log.splitlines()[-1] == (
        f"error: interrupted: saved step {step} in {workdir}; run the same command to go on"
    )


def test_a_second_ctrl_c_ends_at_once(runs: Runs, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    arguments = [*runs.arguments, "--config.total_steps=100000", "--config.checkpoint_every=1000000"]
    # The trainer waits for ever after the first one: its next step comes when the second has ended it.
    process = start(["tests.support.never_due", f"--workdir={workdir}", *arguments])
    assert process.stderr is not None
    wait_until(lambda: (workdir / "metrics.jsonl").exists() and bool(trainings.losses(workdir)), process)
    process.send_signal(signal.SIGINT)
    while "Ctrl-C: saving after this step" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    assert trainings.ended(process)[0] == -signal.SIGINT
    assert checkpoint.steps(workdir) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_while_the_first_step_is_compiled_ends_at_once(
    number: signal.Signals, runs: Runs, tmp_path: Path
) -> None:
    process = start(["tests.support.compiles_for_ever", f"--workdir={tmp_path / 'run'}", *runs.arguments])
    assert process.stderr is not None
    while "compiling" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(number)
    assert trainings.ended(process)[0] == -number


def test_a_workdir_in_use_is_refused_and_one_whose_run_was_killed_is_not(runs: Runs, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    first = start(["trainer.main", f"--workdir={workdir}", *runs.arguments, "--config.total_steps=100000"])
    wait_until(lambda: bool(checkpoint.steps(workdir)), first)
    host = socket.gethostname()
    for module, arguments in (
        ("trainer.main", [*runs.arguments, "--config.total_steps=100000"]),
        ("trainer.compress", [f"--checkpoint={runs.whole}", "--config=configs/compress.py"]),
    ):
        code, output, log = trainings.ended(start([module, f"--workdir={workdir}", *arguments]))
        assert (code, output) == (2, "")
        assert log.splitlines()[-1] == (
            f"error: another process (pid {first.pid} on {host}) is training in {workdir}; "
            "wait for it or give another --workdir"
        )
    first.kill()
    trainings.ended(first)
    code, output, log = train(workdir, runs.arguments)
    assert "the workdir holds the checkpoint of another run: total_steps is 100000 there" in log
