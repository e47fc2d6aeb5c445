"""A run that is killed again and again, and goes on each time as another number of processes; a disk that is full."""

import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.command import ExitCode
from tests.support import trainings
from tests.support.trainings import ROOT, start, wait_until
from trainer import checkpoint
from trainer.models.build import flatten

EXAMPLES, BATCH, STEPS = 1257, 32, 160  # four epochs
# Sums in another order differ by some 1e-7 of their size in float32; 160 steps of Adam carry that along. A batch that is seen
# twice, left out or shuffled otherwise moves parameters by 1e-2 and more.
SAME_PARAMETERS = 2e-3


def job(
    workdir: Path, seen: Path, processes: int, devices: int, arguments: list[str]
) -> subprocess.Popen[str]:
    """The run as so many processes with so many devices each, which write down what they see."""
    options = [f"--processes={processes}", f"--devices_per_process={devices}", "--grace_s=1"]
    command = ["python", "-m", "tests.support.sees", f"--workdir={workdir}", *arguments]
    return start(
        [
            "tools.launch",
            "run",
            "--backend=local",
            *options,
            f"--timeout_s={trainings.PATIENCE_S}",
            "--",
            *command,
        ],
        VITFORGE_SEEN=str(seen),
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_as_one_two_four_and_one_process_and_sees_each_example_once(
    tmp_path: Path,
) -> None:
    arguments = trainings.settings(
        trainings.small_shape(tmp_path), total_steps=STEPS, eval_every=STEPS, checkpoint_every=10, batch=BATCH
    )
    code, _, log = trainings.train(tmp_path / "whole", arguments)
    assert code == 0, log

    workdir, when = tmp_path / "run", random.Random(0)
    attempts = [
        (1, 1, []),
        (2, 2, ["--config.mesh.fsdp=2"]),
        (4, 1, ["--config.mesh.fsdp=2", "--config.mesh.model=2"]),
        (1, 2, []),
    ]
    for number, (processes, devices, mesh) in enumerate(attempts):
        launcher = job(workdir, tmp_path / f"seen-{number}", processes, devices, [*arguments, *mesh])
        if number == len(attempts) - 1:
            break
        reached = (checkpoint.steps(workdir) or [0])[-1] + when.randrange(10, 30)
        wait_until(lambda reached=reached: _steps(workdir) >= reached, launcher)  # type: ignore[misc]
        launcher.kill()  # with no word to its processes, which end when they find it gone
        trainings.ended(launcher)
        _all_gone(tmp_path / f"seen-{number}")
    code, _, log = trainings.ended(launcher)
    assert code == 0, log

    assert checkpoint.steps(workdir)[-1] == STEPS
    ours, theirs = (flatten(checkpoint.load(path).params) for path in (workdir, tmp_path / "whole"))
    for name, array in theirs.items():
        if name.endswith(
            "key/bias"
        ):  # softmax does not see it: its gradient is rounding alone, which Adam blows up
            continue
        np.testing.assert_allclose(ours[name], array, atol=SAME_PARAMETERS, err_msg=name)

    # What counts of a step is what the last process to take it has seen.
    steps = {}
    for number in range(len(attempts)):
        steps |= _seen(tmp_path / f"seen-{number}")
    assert sorted(steps) == list(range(1, STEPS + 1))
    order = list(itertools.chain.from_iterable(steps[step] for step in sorted(steps)))
    batches = [set(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    assert all(len(batch) >= BATCH - 1 for batch in batches)
    for epoch in range(STEPS * BATCH // EXAMPLES):
        # Within a batch the order is the processes' own: an epoch's first and last batch are shared with its neighbours.
        inside = order[-(-epoch * EXAMPLES // BATCH) * BATCH : (epoch + 1) * EXAMPLES // BATCH * BATCH]
        assert len(inside) == len(set(inside)) > EXAMPLES - 2 * BATCH
    counts = np.bincount(order, minlength=EXAMPLES)
    assert counts.max() - counts.min() <= 1


def _steps(workdir: Path) -> int:
    return max(trainings.losses(workdir), default=0) if (workdir / "metrics.jsonl").is_file() else 0


def _seen(folder: Path) -> dict[int, list[int]]:
    """Step → the examples that all processes of an attempt saw."""
    found: dict[int, dict[int, list[int]]] = {}
    for path in sorted(folder.glob("process-*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("]}"):  # a kill may have cut the last one
                said = json.loads(line)
                # Processes that share the shards of a batch see the same.
                found.setdefault(said["step"], {})[said["share"]] = said["examples"]
    return {step: list(itertools.chain.from_iterable(shares.values())) for step, shares in found.items()}


def _all_gone(folder: Path) -> None:
    """Waits for the processes that wrote into `folder`."""
    for path in folder.glob("process-*.pid"):
        pid = Path("/proc") / path.read_text()
        while pid.exists():
            subprocess.run(["kill", "-9", path.read_text()], check=False, capture_output=True)


_SMALL_DISK = 'mount -t tmpfs -o size=2m tmpfs "$0" && "$@"; code=$?; cp -r "$0" "$0.after"; exit $code'


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode
    ):
        pytest.skip("no mount of one's own can be made here")
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = trainings.settings(trainings.small_shape(tmp_path), total_steps=60, keep_last=9)
    train = [sys.executable, "-m", "trainer.main", f"--workdir={disk / 'run'}", *arguments]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", _SMALL_DISK, str(disk), *train],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.DISK_FULL, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: no space left on the disk")
    after = tmp_path / "disk.after/run"
    whole = checkpoint.steps(after)
    assert whole
    assert f"the checkpoint of step {whole[-1]} is whole; free some and run the same command" in last

    code, output, log = trainings.train(after, arguments)
    assert code == 0, log
    assert trainings.result(output)["resumed_from"] == whole[-1]
    assert trainings.train(tmp_path / "whole", arguments)[0] == 0
    trainings.assert_same_parameters(after, tmp_path / "whole")
