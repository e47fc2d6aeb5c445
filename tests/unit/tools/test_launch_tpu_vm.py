"""TPU VMs: what a stand-in for gcloud is asked, with workers that are folders of this machine and real processes in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.command import ExitCode
from tests.support import fake_command
from tests.support.launches import launch

ROOT = Path(__file__).parents[3]
WHERE = ["--backend=tpu_vm", "--project=lab", "--zone=us-central2-b", "--name=ti", f"--venv={sys.prefix}"]
ON_V4 = [*WHERE, "--topology=v4:2x2x2", "--grace_s=1"]
SAYS = [
    *("--", "python", "-c"),
    "import os, sys; print(os.environ['VITFORGE_COORDINATOR'], os.path.isfile('tools/launch.py'), sys.argv[1:])",
    "$(id) 'x'",
]


@pytest.fixture
def cloud(tmp_path: Path) -> dict[str, str]:
    return fake_command.install(tmp_path, "gcloud", "tests.support.fake_gcloud")


def asked(folder: Path, *words: str) -> list[list[str]]:
    """The calls of gcloud that begin with these words behind `compute tpus`."""
    calls = [call[2:] for call in fake_command.calls(folder / "gcloud") if call[:2] == ["compute", "tpus"]]
    return [call for call in calls if call[: len(words)] == list(words)]


def test_a_job_gets_its_tpus_runs_on_every_worker_and_gives_them_back(
    cloud: dict[str, str], tmp_path: Path
) -> None:
    records = f"--records={tmp_path / 'records'}"
    done = launch("run", records, *ON_V4, "--spot", "--setup=touch ready", *SAYS, **cloud)
    assert done.returncode == 0, done.stderr
    for index in (0, 1):
        assert f"[{index}] 127.0.0.1:8476 True [\"$(id) 'x'\"]" in done.stderr
    (created,) = asked(tmp_path, "queued-resources", "create")
    assert {
        "--node-id=ti",
        "--accelerator-type=v4-16",
        "--runtime-version=tpu-ubuntu2204-base",
        "--spot",
    } <= set(created)
    assert len(asked(tmp_path, "queued-resources", "delete", "ti")) == 1
    assert not list((tmp_path / "gcloud").glob("home-*"))
    logs = launch("logs", records, "--name=ti", "--process=1", **cloud).stdout
    assert logs.startswith("[1] 127.0.0.1:8476")


def test_capacity_that_is_taken_away_is_asked_for_again(cloud: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "gcloud/lose").write_text("ti-1")
    records = f"--records={tmp_path / 'records'}"
    # In the first attempt worker 0 waits until it is asked to end, when its peer was lost.
    script = (
        "import glob, os, signal\n"
        "first = len(glob.glob(os.environ['ATTEMPTS'])) == 1\n"
        "if first and os.environ['VITFORGE_PROCESS_ID'] == '0': signal.pause()"
    )
    job = [*ON_V4, f"--env=ATTEMPTS={tmp_path / 'records/ti/attempt_*'}", "--max_restarts=2"]
    done = launch("run", records, *job, "--", "python", "-c", script, **cloud)
    assert done.returncode == 0, done.stderr
    assert "failed first, with exit code 255: its host is not reached any more" in done.stderr
    assert "[launch] code 44: starting again in 1 s, from the beginning (restart 1 of 2)" in done.stderr
    assert len(asked(tmp_path, "queued-resources", "create")) == 2
    assert len(asked(tmp_path, "queued-resources", "delete")) == 2
    assert [path.name for path in sorted((tmp_path / "records/ti").glob("attempt_*"))] == [
        "attempt_0",
        "attempt_1",
    ]


def test_slices_are_nodes_whose_workers_follow_each_other(cloud: dict[str, str], tmp_path: Path) -> None:
    job = [*ON_V4, "--slices=2", "--keep"]
    done = launch("run", f"--records={tmp_path / 'records'}", *job, *SAYS, **cloud)
    assert done.returncode == 0, done.stderr
    on = [(call[2], call[5]) for call in asked(tmp_path, "tpu-vm", "ssh") if "attended.py" in call[-1]]
    assert sorted(on) == [
        ("ti-0", "--worker=0"),
        ("ti-0", "--worker=1"),
        ("ti-1", "--worker=0"),
        ("ti-1", "--worker=1"),
    ]
    assert not asked(tmp_path, "queued-resources", "delete")  # --keep


def test_tpus_that_are_not_given_are_told_in_one_line(cloud: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "gcloud/states.json").write_text(json.dumps(["FAILED"]))
    done = launch("run", f"--records={tmp_path / 'records'}", *ON_V4, *SAYS, **cloud)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "error: Google Cloud did not give the TPUs (FAILED); see the queued resource ti" in done.stderr


def test_the_doctor_looks_at_account_and_offer(cloud: dict[str, str], tmp_path: Path) -> None:
    done = launch("doctor", *ON_V4, **cloud)
    assert json.loads(done.stdout)["looked_at"] == [
        "account engineer@example.com",
        "v4-16 in us-central2-b",
        "quota of v4 in us-central2-b: 32, of which 16 are asked for",
    ]
    said = "missing  quota of v4 in us-central2-b: is 8, and 16 are asked for; ask for more"
    assert said in launch("doctor", *ON_V4, "--spot", **cloud).stderr
    assert (
        "missing  v6e-16 in us-central2-b: is not offered there"
        in launch("doctor", *WHERE, "--topology=v6e:4x4", **cloud).stderr
    )
    (tmp_path / "gcloud/logged_out").touch()
    assert "nobody is logged in; gcloud auth login" in launch("doctor", *ON_V4, **cloud).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*WHERE, *SAYS], "--backend=tpu_vm needs --topology=KIND:SHAPE"),
        (["--backend=tpu_vm", "--topology=v4:2x2x2", "--zone=z", *SAYS], "--backend=tpu_vm needs --project"),
        ([*WHERE, "--topology=v4:2x2x2", "--processes=8", *SAYS], "--processes=8, but --topology has 2"),
    ],
)
def test_bad_input_is_refused_before_the_cloud_is_asked(
    cloud: dict[str, str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = launch("run", f"--records={tmp_path / 'records'}", *arguments, **cloud)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.BAD_INPUT, 1)
    assert said in done.stderr
    assert not (tmp_path / "gcloud/calls.jsonl").exists()


def test_a_job_that_is_stopped_while_it_waits_for_capacity_leaves_nothing(
    cloud: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "gcloud/states.json").write_text(json.dumps(["WAITING_FOR_RESOURCES"]))
    records = f"--records={tmp_path / 'records'}"
    command = [sys.executable, "-m", "tools.launch", "run", records, *ON_V4, *SAYS]
    with subprocess.Popen(
        command, env=os.environ | cloud, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stderr is not None
        while "WAITING_FOR_RESOURCES" not in launcher.stderr.readline():
            assert launcher.poll() is None
        stopped = launch("stop", records, "--name=ti", **cloud)
        launcher.communicate(timeout=60)
    assert (json.loads(stopped.stdout)["state"], launcher.returncode) == ("ended", 143)
    assert json.loads((tmp_path / "gcloud/resources.json").read_text()) == {}


def test_tpus_that_somebody_else_made_are_neither_used_nor_deleted(
    cloud: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "gcloud/resources.json").write_text(
        json.dumps({"ti": {"nodes": ["ti"], "type": "v4-16", "asked": 0}})
    )
    done = launch("run", f"--records={tmp_path / 'records'}", *ON_V4, *SAYS, **cloud)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "error: a queued resource ti is there already (ACTIVE); --reuse runs on it," in done.stderr
    assert not asked(tmp_path, "queued-resources", "delete")


def test_a_shape_that_google_cloud_does_not_give_by_number_is_refused(cloud: dict[str, str]) -> None:
    done = launch("run", *WHERE, "--topology=v5p:2x2x8", *SAYS, **cloud)
    assert (
        "--topology=v5p:2x2x8: a TPU VM is asked for by its number of chips, which come as 2x2x1"
        in done.stderr
    )
