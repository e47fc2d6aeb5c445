"""The launcher over ssh, on real sshd: hosts in network namespaces of their own, or on loopback where those are not allowed."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.command import ExitCode
from tests.support import sshd, trainings
from tests.support.launches import launch
from trainer import checkpoint

ROOT = trainings.ROOT


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Hosts]:
    if why := sshd.missing():
        pytest.skip(f"no sshd here: {why}")
    with sshd.hosts(tmp_path_factory.mktemp("lab"), 2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.small_shape(tmp_path_factory.mktemp("shape"))


def options(lab: sshd.Hosts, folder: Path, **changed: str) -> list[str]:
    """Of a job called `job`, whose code is shipped to a folder under `folder`."""
    given = {
        "backend": "ssh",
        "hosts": ",".join(host.name for host in lab),
        "ssh": f"ssh -F {lab.ssh_config}",
        "coordinator": lab[0].address,
        "folder": f"{folder}/code",
        "venv": sys.prefix,
        "devices_per_process": "2",
        "name": "job",
        "records": str(folder),
        "grace_s": "3",
        **changed,
    }
    return [*(f"--{name}={value}" for name, value in given.items()), "--env=JAX_PLATFORMS=cpu"]


def training(folder: Path, arguments: list[str]) -> list[str]:
    return ["--", "python", "-m", "trainer.main", f"--workdir={folder / 'run'}", *arguments]


def test_arguments_and_secrets_reach_the_hosts_and_secrets_nobody_else(
    lab: sshd.Hosts, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("nobody knows\n")
    theirs = tmp_path / "code/runs/theirs"  # in the folder that the code is shipped to
    theirs.mkdir(parents=True)
    says = "import os, sys; print(sys.argv[1:], os.environ['A'][:4], os.path.isfile('tools/launch.py'))"
    typed = ["a b", "it's", '"q"', "$(touch x)", "`id`", "*", "--", ""]
    job = [*options(lab, tmp_path), f"--secret=A=file:{tmp_path / 'secret'}"]
    done = launch("run", *job, "--", "python", "-c", says, *typed)
    assert done.returncode == 0, done.stderr
    for index in (0, 1):
        assert f"[{index}] {typed} nobo True" in done.stderr
    kept = [path for path in tmp_path.glob("job/**/*") if path.is_file()]
    assert len(kept) > 4
    assert theirs.is_dir()
    assert not any("nobody knows" in path.read_text() for path in kept)


def test_a_host_that_is_cut_off_ends_the_gang_which_starts_again_when_it_is_back(
    lab: sshd.Hosts, shape: Path, tmp_path: Path
) -> None:
    arguments = trainings.settings(shape, total_steps=200, checkpoint_every=20)
    assert trainings.train(tmp_path / "alone", arguments, JAX_NUM_CPU_DEVICES="4")[0] == 0
    launcher = trainings.start(
        ["tools.launch", "run", *options(lab, tmp_path), *training(tmp_path, arguments)]
    )
    trainings.wait_until(lambda: bool(checkpoint.steps(tmp_path / "run")), launcher)
    lab[1].cut()
    assert launcher.stderr is not None
    log = []
    while not (log and log[-1].startswith("[launch] waiting: host host1: does not answer")):
        log.append(launcher.stderr.readline())
        assert log[-1], "".join(log)
    lab[1].join()
    code, _, rest = trainings.ended(launcher)
    text = "".join(log) + rest
    assert code == 0, text
    assert "error: process 1 of 2 failed first, with exit code 255: its host is not reached any more" in text
    assert re.search(r"\[launch\] code 44: starting again in 1 s, from step \d+ \(restart 1 of 10\)", text)
    assert checkpoint.steps(tmp_path / "run")[-1] == 200
    first, second = trainings.losses(tmp_path / "alone"), trainings.losses(tmp_path / "run")
    assert second == pytest.approx(first, rel=1e-4)


def test_a_job_is_stopped_by_its_name_and_saves(lab: sshd.Hosts, shape: Path, tmp_path: Path) -> None:
    arguments = trainings.settings(shape, total_steps=100000, checkpoint_every=20)
    job = [*options(lab, tmp_path, grace_s="60"), *training(tmp_path, arguments)]
    launcher = trainings.start(["tools.launch", "run", *job])
    trainings.wait_until(lambda: bool(checkpoint.steps(tmp_path / "run")), launcher)
    named = ["--name=job", f"--records={tmp_path}"]
    assert json.loads(launch("status", *named).stdout)["state"] == "running"
    done = launch("stop", *named)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == ExitCode.PREEMPTED
    code, _, log = trainings.ended(launcher)
    assert code == ExitCode.PREEMPTED, log
    text = launch("logs", *named).stdout
    assert "[0] error: preempted: saved step" in text
    assert "[1] error: preempted: saved step" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"hosts": "host0,host7"},
            "error: host host7: does not answer (ssh: Could not resolve hostname host7",
        ),
        ({"hosts": "host0,host0"}, "error: --hosts=host0,host0 names a host twice"),
        ({"venv": "/no/environment"}, "error: host host0: cannot run /no/environment/bin/python"),
        ({"hosts": ""}, "error: --backend=ssh needs --hosts=HOST,HOST…"),
    ],
)
def test_hosts_that_cannot_be_used_are_named_in_one_line(
    lab: sshd.Hosts, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    done = launch("run", *options(lab, tmp_path, **changed), "--", "true")
    assert done.returncode == ExitCode.BAD_INPUT
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "code").exists()


def test_a_workdir_that_the_hosts_do_not_share_is_refused_before_anything_starts(
    lab: sshd.Hosts, tmp_path: Path
) -> None:
    if not lab.isolated:
        pytest.skip("hosts on loopback share all folders")
    own = tmp_path / "own"
    own.mkdir()
    subprocess.run([*lab.ssh, "host1", f"mount -t tmpfs none {own}"], check=True)
    done = launch("run", *options(lab, tmp_path), "--", "true", f"--workdir={own}/run")
    assert done.returncode == ExitCode.BAD_INPUT
    assert (
        f"error: workdir {own}/run: host1 does not see what host0 wrote in {own}; give a folder"
        in done.stderr
    )
    assert not list(own.iterdir())


def test_the_doctor_looks_at_hosts_port_and_workdir(lab: sshd.Hosts, tmp_path: Path) -> None:
    done = launch("doctor", *options(lab, tmp_path), "--", "true", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    looked = json.loads(done.stdout)["looked_at"]
    assert [what.partition(":")[0] for what in looked[:2]] == ["host host0", "host host1"]
    assert looked[2:] == [
        f"port 8476 of {lab[0].address} is reached by all",
        f"workdir {tmp_path / 'run'} is shared",
    ]
