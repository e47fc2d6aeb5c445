"""The launcher on a real Slurm cluster, whose nodes are several slurmd on this machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.command import ExitCode
from tests.support import slurm, trainings
from trainer import checkpoint

ROOT = trainings.ROOT
PREEMPTIBLE = ("--partition=low",)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    if why := slurm.missing():
        pytest.skip(f"no Slurm here: {why}")
    with slurm.cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=2, kill_wait_s=30) as made:
        yield made


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.small_shape(tmp_path_factory.mktemp("shape"))


def launch(cluster: slurm.Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.launch", *arguments],
        cwd=ROOT,
        env={**cluster.environment, "PYTHONPATH": str(ROOT), "VITFORGE_START_TIMEOUT_S": "120"},
        capture_output=True,
        text=True,
        timeout=2 * trainings.PATIENCE_S,
    )


def submit(cluster: slurm.Cluster, folder: Path, training: list[str], *options: str) -> str:
    """The number of a two-task job that trains in `folder`/run, recorded as `job`."""
    job = ["--backend=slurm", "--processes=2", "--devices_per_process=1", "--name=job", f"--records={folder}"]
    command = ["python", "-m", "trainer.main", f"--workdir={folder / 'run'}", *training]
    done = launch(cluster, "run", *job, "--env=JAX_PLATFORMS=cpu", *options, "--", *command)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["handle"])


def until_saved(cluster: slurm.Cluster, folder: Path, step: int = 1) -> None:
    cluster.wait_until(
        lambda: [at for at in checkpoint.steps(folder / "run") if at >= step],
        f"a checkpoint of step {step}",
        trainings.PATIENCE_S,
    )


def waited(cluster: slurm.Cluster, folder: Path) -> tuple[int, dict[str, object]]:
    """Exit code and result of `status --wait`."""
    done = launch(cluster, "status", "--wait", "--name=job", f"--records={folder}")
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def output(cluster: slurm.Cluster, folder: Path) -> str:
    done = launch(cluster, "logs", "--follow", "--name=job", f"--records={folder}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_tasks_train_as_one_process_does(cluster: slurm.Cluster, shape: Path, tmp_path: Path) -> None:
    training = trainings.settings(shape, total_steps=12, eval_every=12)
    assert trainings.train(tmp_path / "alone", training)[0] == 0
    submit(cluster, tmp_path, training)
    code, said = waited(cluster, tmp_path)
    text = output(cluster, tmp_path)
    assert (code, said["state"], said["step"]) == (0, "ended", 12), text
    assert "2 processes with 2 cpu devices" in text
    assert "[1] " in text
    first, second = trainings.losses(tmp_path / "alone"), trainings.losses(tmp_path / "run")
    assert second == pytest.approx(first, rel=1e-5)


def test_a_requeued_job_saves_and_goes_on(cluster: slurm.Cluster, shape: Path, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, trainings.settings(shape, total_steps=600, checkpoint_every=50))
    until_saved(cluster, tmp_path)
    cluster.run("scontrol", "requeue", job)
    code, said = waited(cluster, tmp_path)
    text = output(cluster, tmp_path)
    assert (code, said["step"]) == (0, 600), text
    assert cluster.job(job)["Restarts"] == "1"
    assert "preempted: saved step" in text
    assert "resumed from step" in text


def test_a_job_that_another_takes_the_place_of_is_requeued_and_goes_on(
    cluster: slurm.Cluster, shape: Path, tmp_path: Path
) -> None:
    job = submit(
        cluster, tmp_path, trainings.settings(shape, total_steps=600, checkpoint_every=50), *PREEMPTIBLE
    )
    until_saved(cluster, tmp_path)
    script = tmp_path / "other.sh"
    script.write_text("#!/bin/bash\nsrun true\n")
    other = cluster.submit(script, "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    cluster.wait_for_state(other, "COMPLETED", patience_s=trainings.PATIENCE_S)
    code, said = waited(cluster, tmp_path)
    text = output(cluster, tmp_path)
    assert (code, said["step"]) == (0, 600), text
    assert cluster.job(job)["Restarts"] == "1"
    assert "preempted: saved step" in text


def test_a_killed_task_ends_the_other_and_both_start_again(
    cluster: slurm.Cluster, shape: Path, tmp_path: Path
) -> None:
    submit(cluster, tmp_path, trainings.settings(shape, total_steps=600, checkpoint_every=50), "--grace_s=5")
    until_saved(cluster, tmp_path)
    os.kill(_task(tmp_path, 1), signal.SIGKILL)
    code, said = waited(cluster, tmp_path)
    text = output(cluster, tmp_path)
    assert (code, said["step"], said["attempt"]) == (0, 600, 1), text
    assert "[launch] [launch] code 137: starting again in 1 s, from step" in text


def _task(folder: Path, index: int) -> int:
    """The pid of a task that trains in `folder`/run; srun, which has its words among its own, is no task."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
            wanted = {f"SLURM_PROCID={index}".encode(), b"SLURM_STEP_NUM_TASKS=2"}
            if f"--workdir={folder / 'run'}".encode() in words and wanted <= set(variables):
                return int(process.name)
    raise AssertionError(f"task {index} is not there")


def test_the_task_that_failed_first_decides_not_the_highest_code(
    cluster: slurm.Cluster, tmp_path: Path
) -> None:
    """Task 1 is refused its input; task 0, which is then asked to end, has saved: neither starts again."""
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n"
        "open(sys.argv[1], 'w' if os.environ['SLURM_PROCID'] == '0' else 'r').close()\n"
        "sys.exit(2) if os.environ['SLURM_PROCID'] == '1' else signal.pause()"
    )
    os.mkfifo(tmp_path / "pipe")
    job = ["--backend=slurm", "--processes=2", "--name=job", f"--records={tmp_path}", "--max_restarts=3"]
    command = ["--", "python", "-c", script, str(tmp_path / "pipe")]
    assert launch(cluster, "run", *job, *command).returncode == 0
    code, said = waited(cluster, tmp_path)
    assert (code, said["attempt"], said["why"]) == (2, 0, "process 1 of 2 failed first, with exit code 2")


def test_a_stopped_job_saves_and_stays_stopped(cluster: slurm.Cluster, shape: Path, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, trainings.settings(shape, total_steps=100000, checkpoint_every=50))
    until_saved(cluster, tmp_path)
    done = launch(cluster, "stop", "--name=job", f"--records={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == ExitCode.PREEMPTED
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert cluster.job(job)["Restarts"] == "0"
    assert "preempted: saved step" in output(cluster, tmp_path)


def test_a_sweep_is_one_array_with_a_table_of_results(
    cluster: slurm.Cluster, shape: Path, tmp_path: Path
) -> None:
    training = trainings.settings(shape, total_steps=6, eval_every=6, warmup_steps=0)
    training = [word for word in training if not word.startswith("--config.base_lr")]
    submit(cluster, tmp_path, training, "--parallel=1", "--sweep", "base_lr=0.01,0.001")
    done = launch(cluster, "status", "--wait", "--name=job", f"--records={tmp_path}")
    rows = json.loads(done.stdout)["jobs"]
    assert [(row["job"], row["state"], row["code"], row["step"]) for row in rows] == [
        ("base_lr=0.01", "ended", 0, 6),
        ("base_lr=0.001", "ended", 0, 6),
    ]
    assert rows[0]["loss"] != rows[1]["loss"]
    assert "base_lr=0.001" in done.stderr


def test_slurms_refusal_is_one_line(cluster: slurm.Cluster, shape: Path, tmp_path: Path) -> None:
    done = launch(
        cluster,
        "run",
        "--backend=slurm",
        "--partition=none",
        "--name=job",
        f"--records={tmp_path}",
        "--",
        "true",
    )
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stderr.splitlines()[-1].startswith("error: Slurm refused the job: ")
    assert "invalid partition specified: none" in done.stderr
