"""One training as two real JAX processes under the launcher: the same losses, one result, one exit code."""

import math
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

from serving.command import ExitCode
from tests.support import trainings
from tests.support.trainings import start, train, wait_until
from trainer import checkpoint

# Eight devices add up gradients in another order than one: float32 sums differ by some 1e-7 of their size, and ten steps carry
# that along. Half a batch, another example or another augmentation changes a loss by 1e-2 and more.
SAME_LOSS = 1e-5

finds_processes = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="the processes of a job are found in Linux's /proc"
)


def launched(command: list[str], *options: str, processes: int = 2) -> list[str]:
    """`command` as so many processes with eight devices in all."""
    size = [f"--processes={processes}", f"--devices_per_process={8 // processes}"]
    job = ["--backend=local", *size, f"--timeout_s={trainings.PATIENCE_S}", *options]
    return ["tools.launch", "run", *job, "--", *command]


def launch(workdir: Path, arguments: list[str], *options: str, processes: int = 2) -> list[str]:
    command = ["python", "-m", "trainer.main", f"--workdir={workdir}", *arguments]
    return launched(command, *options, processes=processes)


def assert_same_losses(one: Path, other: Path) -> None:
    first, second = trainings.losses(one), trainings.losses(other)
    assert second == pytest.approx(first, rel=SAME_LOSS)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.small_shape(tmp_path_factory.mktemp("shape"))


@pytest.fixture(scope="module")
def arguments(shape: Path) -> list[str]:
    return trainings.settings(shape, total_steps=12, eval_every=6, checkpoint_every=4)


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, _, log = train(workdir, arguments)
    assert code == 0, log
    return workdir


# Replicas alone; parameters cut within and between processes; the model axis across both processes; each process a slice; and
# with each of them another way to compute a step. One device takes them all in a plain step.
IN_PARTS, REMAT, LOOP = "--config.accum_steps=2", "--config.remat=blocks", "--config.scan_blocks=True"
JOBS: list[tuple[int, tuple[int, ...], list[str]]] = [
    (2, (8, 1, 1), []),
    (2, (2, 2, 2), [IN_PARTS, REMAT]),
    (2, (1, 1, 8), [LOOP]),
    (2, (2, 2, 1, 2), []),
    (4, (4, 2, 1), [REMAT, LOOP]),
    (4, (1, 2, 4), [IN_PARTS]),
]


def on_mesh(mesh: tuple[int, ...]) -> list[str]:
    data, fsdp, model, *slices = mesh
    axes = [f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}", f"--config.mesh.model={model}"]
    return axes + [f"--config.mesh.slices={count}" for count in slices]


@pytest.mark.parametrize(("processes", "mesh", "ways"), JOBS)
def test_several_processes_train_as_one(
    processes: int, mesh: tuple[int, ...], ways: list[str], arguments: list[str], alone: Path, tmp_path: Path
) -> None:
    data, fsdp, model, *slices = mesh
    job = launch(tmp_path / "run", [*arguments, *on_mesh(mesh), *ways], processes=processes)
    code, output, log = trainings.ended(start(job))
    assert code == 0, log
    assert output.count("\n") == 1
    said = trainings.result(output)
    assert (said["steps"], said["workdir"]) == (12, str(tmp_path / "run"))
    assert any(line.startswith("[0] ") and output.strip() in line for line in log.splitlines())
    assert f"mesh data={data * math.prod(slices)} fsdp={fsdp} model={model}" in log
    assert f"{processes} processes with 8 cpu devices" in log
    assert_same_losses(alone, tmp_path / "run")

    (evaluated,) = (
        line for line in trainings.record(alone) if line["step"] == 12 and "validation_top1" in line
    )
    # Every example of the 180 counts once, on one device as on eight; parameters that differ by 1e-5 turn none of them.
    assert said["validation_top1"] == evaluated["validation_top1"]


@pytest.mark.parametrize(("processes", "mesh"), [(2, (2, 2, 2)), (4, (2, 4, 1))])
def test_several_processes_distil_as_one(
    processes: int, mesh: tuple[int, ...], shape: Path, tmp_path: Path
) -> None:
    """Views are mixed in pairs, which must be the same pairs whoever reads them."""
    taught = trainings.settings(shape, total_steps=6, eval_every=6, checkpoint_every=6, mixup=0.4)
    taught += [f"--config.teacher_weights={shape}", "--config.distill_weight=0.5"]
    code, _, log = train(tmp_path / "alone", taught)
    assert code == 0, log
    job = launch(tmp_path / "run", [*taught, *on_mesh(mesh)], processes=processes)
    code, _, log = trainings.ended(start(job))
    assert code == 0, log
    assert_same_losses(tmp_path / "alone", tmp_path / "run")


def test_several_processes_evaluate_as_one(alone: Path, tmp_path: Path) -> None:
    asked = ["trainer.evaluate", f"--checkpoint={alone}"]
    code, output, log = trainings.ended(start(asked))
    assert code == 0, log
    job = launched(["python", "-m", *asked, f"--report={tmp_path / 'report'}"])
    code, together, log = trainings.ended(start(job))
    assert code == 0, log
    first, second = trainings.result(output), trainings.result(together)
    assert first.pop("loss") == pytest.approx(second.pop("loss"), rel=SAME_LOSS)
    assert first.pop("calibration_error") == pytest.approx(second.pop("calibration_error"), abs=1e-4)
    assert first == second
    assert (tmp_path / "report/evaluation.json").is_file()


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        (
            "--config.seed=$VITFORGE_PROCESS_ID",
            "process 1 of 2 sees a configuration that process 0 does not; start all with",
        ),
        (
            "--workdir=$FOLDER/$VITFORGE_PROCESS_ID",
            "is not that of process 1; give a folder that all hosts share",
        ),
    ],
)
def test_processes_that_would_learn_or_write_something_else_are_refused(
    differs: str, said: str, arguments: list[str], tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "trainer.main", f"--workdir={tmp_path / 'run'}", *arguments]
    line = " ".join(map(shlex.quote, words)) + f' "{differs}"'
    code, output, log = trainings.ended(start(launched(["sh", "-c", line]), FOLDER=str(tmp_path)))
    assert (code, output) == (ExitCode.BAD_INPUT, ""), log
    assert said in log


@finds_processes
def test_one_process_that_is_asked_to_stop_makes_all_save_the_same_step(shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=5000, checkpoint_every=10)
    workdir = tmp_path / "run"
    launcher = start(launch(workdir, arguments, "--max_restarts=0"))
    wait_until(lambda: bool(checkpoint.steps(workdir)), launcher)
    os.kill(_child(launcher.pid, 1), signal.SIGTERM)
    code, output, log = trainings.ended(launcher)
    assert (code, output) == (ExitCode.PREEMPTED, ""), log
    reached = checkpoint.steps(workdir)[-1]
    for index in (0, 1):
        assert f"[{index}] error: preempted: saved step {reached} in {workdir}" in log
    assert checkpoint.load(workdir).meta["step"] == reached


def test_a_job_that_evaluates_stops_between_two_batches(shape: Path, tmp_path: Path) -> None:
    """Of 180 images eight at a time: asked in the first evaluation, it saves the step in which that began."""
    arguments = trainings.settings(shape, total_steps=5000, checkpoint_every=1000, eval_every=7, batch_eval=8)
    command = launch(tmp_path / "run", arguments)
    command = ["tests.support.evaluates_slowly" if word == "trainer.main" else word for word in command]
    launcher = start(command)
    assert launcher.stderr is not None
    while "[1] evaluating\n" not in launcher.stderr.readline():
        assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    code, _, log = trainings.ended(launcher)
    assert code == ExitCode.PREEMPTED, log
    assert "preempted: saved step 7 in" in log
    assert checkpoint.steps(tmp_path / "run") == [7]


def test_compiled_steps_are_kept_and_found_again(shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=2, warmup_steps=0, compile_cache=tmp_path / "cache")
    kept = []
    for number in range(2):
        code, _, log = train(tmp_path / str(number), arguments)
        assert code == 0, log
        kept.append({path.name for path in (tmp_path / "cache").iterdir() if path.name.endswith("-cache")})
    assert kept[0]
    assert kept[1] == kept[0]


def test_a_preempted_job_saves_and_goes_on_as_one_process(shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=30, checkpoint_every=10)
    workdir = tmp_path / "run"
    launcher = start(launch(workdir, arguments))
    wait_until(lambda: bool(checkpoint.steps(workdir)), launcher)
    launcher.send_signal(signal.SIGTERM)
    code, output, log = trainings.ended(launcher)
    assert (code, output) == (ExitCode.PREEMPTED, ""), log
    reached = checkpoint.steps(workdir)[-1]
    assert f"preempted: saved step {reached} in" in log

    # What follows is told apart from a run that began anew by its first half.
    whole = tmp_path / "whole"
    assert train(whole, arguments)[0] == 0
    code, output, log = train(workdir, arguments)
    assert code == 0, log
    assert trainings.result(output)["resumed_from"] == reached
    # As above, over more than twice as many steps, which carry differences on.
    first, second = trainings.losses(whole), trainings.losses(workdir)
    assert second == pytest.approx(first, rel=10 * SAME_LOSS)


def test_a_job_that_still_compiles_ends_at_once_when_it_is_asked_to(
    arguments: list[str], tmp_path: Path
) -> None:
    # Nothing there returns to Python, so that only the grace, longer than the patience of this test, would end it otherwise.
    command = launch(tmp_path / "run", arguments, f"--grace_s={10 * trainings.PATIENCE_S}")
    launcher = start(
        ["tests.support.compiles_for_ever" if word == "trainer.main" else word for word in command]
    )
    assert launcher.stderr is not None
    waiting = {"[0] compiling\n", "[1] compiling\n"}
    while waiting:
        line = launcher.stderr.readline()
        assert line
        waiting.discard(line)
    launcher.send_signal(signal.SIGINT)
    code, output, log = trainings.ended(launcher)
    assert (code, output) == (ExitCode.INTERRUPTED, ""), log
    assert log.splitlines()[-1] == "error: stopped; process 0 ended with exit code 143 (SIGTERM)"


def test_a_second_job_in_the_same_workdir_is_refused(shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=100000)
    workdir = tmp_path / "run"
    first = start(["trainer.main", f"--workdir={workdir}", *arguments])
    wait_until(lambda: bool(checkpoint.steps(workdir)), first)
    code, output, log = trainings.ended(start(launch(workdir, arguments)))
    first.kill()
    trainings.ended(first)
    assert (code, output) == (ExitCode.BAD_INPUT, ""), log
    assert f"[0] error: another process (pid {first.pid} on " in log


def _child(launcher: int, index: int) -> int:
    """The pid of process `index` of the launcher's job."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"VITFORGE_PROCESS_ID={index}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"process {index} is not there")


@finds_processes
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_ends_the_job_with_the_code_of_its_death(
    shape: Path, tmp_path: Path, index: int
) -> None:
    arguments = trainings.settings(shape, total_steps=5000)
    workdir = tmp_path / "run"
    # The survivor waits in a collective for the dead and cannot save: after its grace it is killed.
    launcher = start(launch(workdir, arguments, "--grace_s=2", "--max_restarts=0"))
    wait_until(lambda: bool(checkpoint.steps(workdir)), launcher)
    os.kill(_child(launcher.pid, index), signal.SIGKILL)
    code, output, log = trainings.ended(launcher)
    assert (code, output) == (128 + signal.SIGKILL, ""), log
    assert f"error: process {index} of 2 failed first, with exit code 137 (SIGKILL)" in log
    # What was saved before is whole.
    shutil.copytree(workdir, tmp_path / "copy")
    assert checkpoint.load(tmp_path / "copy").meta["step"] >= 10


@finds_processes
@pytest.mark.parametrize("processes", [2, 4])
def test_the_gang_of_a_killed_process_starts_again_and_ends_as_if_undisturbed(
    shape: Path, tmp_path: Path, processes: int
) -> None:
    arguments = trainings.settings(shape, total_steps=40, eval_every=40)
    options = {"processes": processes}
    assert trainings.ended(start(launch(tmp_path / "whole", arguments, **options)))[0] == 0
    launcher = start(launch(tmp_path / "run", arguments, "--grace_s=1", **options))
    wait_until(lambda: bool(checkpoint.steps(tmp_path / "run")), launcher)
    os.kill(_child(launcher.pid, processes - 1), signal.SIGKILL)
    code, output, log = trainings.ended(launcher)
    assert code == 0, log
    assert re.search(r"\[launch\] code 137: starting again in 1 s, from step \d+ \(restart 1 of 10\)", log)
    assert trainings.result(output)["resumed_from"] >= 10
    trainings.assert_same_parameters(tmp_path / "run", tmp_path / "whole")


@finds_processes
def test_a_job_of_which_one_process_was_preempted_is_started_again(shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=40, eval_every=40)
    launcher = start(launch(tmp_path / "run", arguments))
    wait_until(lambda: bool(checkpoint.steps(tmp_path / "run")), launcher)
    os.kill(_child(launcher.pid, 1), signal.SIGTERM)
    code, _, log = trainings.ended(launcher)
    assert code == 0, log
    assert re.search(r"code 42: starting again in 1 s, from step \d+ \(not counted\)", log)


def test_bad_input_ends_the_job_with_its_code(arguments: list[str], tmp_path: Path) -> None:
    code, output, log = trainings.ended(start(launch(tmp_path / "run", [*arguments, "--config.bach=3"])))
    assert (code, output) == (ExitCode.BAD_INPUT, "")
    assert "unknown key 'bach', nearest is 'batch'" in log
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stuck_process_is_named_and_the_job_ends(shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=5000, stall_after_s=10)
    command = launch(tmp_path / "run", arguments, "--grace_s=1", "--max_restarts=0")
    code, output, log = trainings.ended(
        start(["tests.support.stuck" if word == "trainer.main" else word for word in command])
    )
    assert (code, output) == (ExitCode.STALLED, ""), log
    assert re.search(
        r"error: stalled: process \d has been stepping at step 2\d for \d+ s, the limit is stall_after_s=10",
        log,
    )
    assert re.search(r"furthest behind is process 1 \(\S+\), stepping at step 25 for", log)
    (stacks, *_) = sorted((tmp_path / "run").glob("stacks-process-*.txt"))
    assert "Thread" in stacks.read_text()
    assert checkpoint.steps(tmp_path / "run") == [10, 20]
