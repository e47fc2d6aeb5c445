"""JobSets: the manifests are golden and valid, and kubectl is called as it wants to be."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from serving.command import ExitCode
from tests.support import fake_command, manifests
from tests.support.launches import launch
from tools.launchers.breaker import note_start

ROOT = Path(__file__).parents[3]
GOLDENS = ROOT / "tests/golden/launch"
TRAINING = ["--", "python", "-m", "trainer.main", "--config=configs/augreg.py:Ti_16", "--workdir=/runs/ti"]
COMMON = ["--backend=jobset", "--image=registry.example.com/vitforge:1", "--name=ti"]
TPU = [
    "--topology=v5e:4x4",
    "--slices=2",
    "--spot",
    "--queue=research",
    "--priority=high",
    "--mount=/runs=gs://lab-runs",
]
TWO_SLICES = ["--config.mesh.slices=2", "--config.batch=1024"]
RENDERED = {
    "jobset_v5e_two_slices": [
        *COMMON,
        *TPU,
        "--secret=TOKEN=kubernetes:tokens/tracker",
        "--service_account=trainer",
        *TRAINING,
        *TWO_SLICES,
        '--config.dataset=folder:/data/$(id) it\'s "q"',
    ],
    "jobset_cpu": [
        *COMMON,
        "--processes=3",
        "--devices_per_process=2",
        "--mount=/runs=pvc:runs",
        "--nohost_network",
        "--env=A=$HOME",
        *("--", "python", "-m", "trainer.main", "--config=configs/digits.py:teacher", "--workdir=/runs/x"),
        "--config.batch=96",
        "--config.batch_eval=96",
    ],
    "tpu_vm_v4_two_slices": [
        *("--backend=tpu_vm", "--project=lab", "--zone=us-central2-b", "--name=ti", "--venv=.venv"),
        *("--topology=v4:2x2x2", "--slices=2", "--spot", "--setup=make setup"),
        *TRAINING,
        *TWO_SLICES,
    ],
    "ssh_two_hosts": [
        *(
            "--backend=ssh",
            "--hosts=one,me@two",
            "--name=ti",
            "--venv=/opt/vitforge",
            "--devices_per_process=8",
        ),
        *("--secret=TOKEN=file:/etc/token", "--secret=KEY=env:KEY"),
        *TRAINING,
        "--config.base_lr=$(id) 'x'",
    ],
    "slurm_sweep": [
        *("--backend=slurm", "--processes=4", "--name=ti", "--venv=/opt/vitforge", "--time_limit=12:00:00"),
        *("--partition=gpu", "--sbatch=--gpus-per-task=4", "--devices_per_process=4", "--parallel=2"),
        *("--sweep", "base_lr=0.01,0.03", "wd=0.03,0.1"),
        *TRAINING,
        "--config.batch=512",
    ],
}


@pytest.mark.parametrize("name", [name for name in RENDERED if name != "ssh_two_hosts"])
def test_what_is_rendered_is_golden(name: str, tmp_path: Path) -> None:
    """VITFORGE_UPDATE_GOLDENS=1 writes the files anew."""
    assert_golden(name, RENDERED[name], tmp_path)


def test_what_ssh_would_run_is_golden_and_arguments_stand_in_it_as_typed(tmp_path: Path) -> None:
    # --config.base_lr is no number here: what is rendered is no recipe of ours.
    words = [word if word != "trainer.main" else "other.main" for word in RENDERED["ssh_two_hosts"]]
    assert_golden("ssh_two_hosts", words, tmp_path)
    told = json.loads((GOLDENS / "ssh_two_hosts/process_1.json").read_text())
    assert told["command"][-1] == "--config.base_lr=$(id) 'x'"
    assert told["secret_files"] == {"TOKEN": "/etc/token"}


def assert_golden(name: str, words: list[str], folder: Path) -> None:
    golden = GOLDENS / name
    update = os.environ.get("VITFORGE_UPDATE_GOLDENS") == "1"
    done = launch("render", f"--output={golden if update else folder}", *words)
    assert done.returncode == 0, done.stderr
    found = _texts(golden if update else folder)
    assert found == _texts(golden)
    assert sorted(found) == json.loads(done.stdout)["files"]


def _texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(bool(manifests.missing()), reason=manifests.missing())
@pytest.mark.parametrize("name", [name for name in RENDERED if name.startswith("jobset")])
def test_manifests_are_valid(name: str) -> None:
    items = json.loads((GOLDENS / name / "manifests.json").read_text())["items"]
    assert [item["kind"] for item in items] == ["ConfigMap", "JobSet"]
    assert manifests.core_problems(items[0]) == []
    assert manifests.problems(items[1]) == []


@pytest.mark.skipif(bool(manifests.missing()), reason=manifests.missing())
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurPolicy"), {}),
        (("spec", "failurePolicy", "rules", 0, "action"), "RestartAll"),
        (("spec", "failurePolicy", "rules", 0, "name"), "not-a-name"),
        (("spec", "replicatedJobs", 0, "template", "spec", "paralelism"), 2),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "image"), 3),
        (("metadata", "name"), "a" * 60),
    ],
)
def test_the_validation_sees_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    jobset = json.loads((GOLDENS / "jobset_cpu/manifests.json").read_text())["items"][1]
    at: Any = jobset
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert manifests.problems(jobset)


def test_a_dollar_reaches_the_process_as_typed() -> None:
    """Kubernetes puts variables in place of $(NAME), and one dollar in place of two."""
    container = _container("jobset_v5e_two_slices")
    assert container["command"][-1] == '--config.dataset=folder:/data/$$(id) it\'s "q"'
    assert {"name": "A", "value": "$$HOME"} in _container("jobset_cpu")["env"]


def _container(name: str) -> dict[str, Any]:
    jobset = json.loads((GOLDENS / name / "manifests.json").read_text())["items"][1]
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    return fake_command.install(tmp_path, "kubectl", "tests.support.fake_kubectl")


JOB = [*COMMON, "--processes=1", "--context=lab", "--namespace=ml", "--", "true"]


def test_a_job_is_handed_over_looked_at_and_deleted(cluster: dict[str, str], tmp_path: Path) -> None:
    records, state = f"--records={tmp_path / 'records'}", tmp_path / "kubectl"
    done = launch("run", records, *JOB, **cluster)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["handle"] == "ti"
    where = ["--context=lab", "--namespace=ml"]
    file = f"--filename={tmp_path / 'records/ti/rendered/manifests.json'}"
    assert [call for call in fake_command.calls(state) if "apply" in call] == [
        [*where, "apply", "--dry-run=server", "--validate=strict", file],
        [*where, "apply", file],
    ]
    named = [records, "--name=ti"]
    assert json.loads(launch("status", *named, **cluster).stdout)["state"] == "waiting"
    (state / "status.json").write_text(json.dumps({"restarts": 2, "replicatedJobsStatus": [{"active": 1}]}))
    assert json.loads(launch("status", *named, **cluster).stdout)["why"] == "0 of 1 ended, 2 restarts"
    assert launch("logs", *named, **cluster).stdout == "[pod/ti-slice-0-0/trainer] step 1\n"
    again = launch("run", records, *JOB, **cluster)
    assert again.returncode == ExitCode.BAD_INPUT
    assert "error: a job ti is there already; stop it, or give this one another --name" in again.stderr
    assert launch("stop", *named, **cluster).returncode == 0
    assert json.loads((state / "items.json").read_text()) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"terminalState": "Completed"}, 0),
        (
            {
                "terminalState": "Failed",
                "conditions": [{"type": "Failed", "message": "jobset failed due to …"}],
            },
            45,
        ),
    ],
)
def test_a_job_that_has_ended_says_with_which_code(
    cluster: dict[str, str], tmp_path: Path, status: dict[str, object], code: int
) -> None:
    records = f"--records={tmp_path / 'records'}"
    assert launch("run", records, *JOB, **cluster).returncode == 0
    (tmp_path / "kubectl/status.json").write_text(json.dumps(status))
    assert launch("status", "--wait", records, "--name=ti", **cluster).returncode == code


def test_a_cluster_that_does_not_answer_is_one_line(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "kubectl/unreachable").touch()
    done = launch("run", f"--records={tmp_path / 'records'}", *JOB, **cluster)
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stderr.startswith("error: kubectl get failed: error: The connection to the server")
    assert done.stderr.count("\n") == 1


def test_the_doctor_asks_for_permission_definition_and_queue(cluster: dict[str, str], tmp_path: Path) -> None:
    assert launch("doctor", *COMMON, "--queue=research", **cluster).returncode == 0
    (tmp_path / "kubectl/without_jobset").touch()
    done = launch("doctor", *COMMON, "--queue=nobody", **cluster)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "missing  the cluster knows JobSet: " in done.stderr
    assert (
        "missing  queue nobody: kubectl get localqueues.kueue.x-k8s.io nobody says error: localqueues"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name=Ti_1"], "--name=Ti_1 is refused by Kubernetes and Google Cloud"),
        (["--name=" + "a" * 40, "--topology=v5e:16x16", "--slices=64"], ""),
        (["--image="], "needs --image=REGISTRY/NAME:TAG"),
        (["--mount=runs=pvc:x"], "--mount=runs=pvc:x: /PATH=pvc:CLAIM or /PATH=gs://BUCKET"),
        (["--namespace=My_Team"], "--namespace: Kubernetes refuses the name 'My_Team'"),
        (["--secret=A=file:x"], "--secret=A: this back end looks up kubernetes, not file"),
        (["--secret=A=hunter2"], "never the value itself"),
        (["--topology=v5e:4x4", "--processes=2"], "--processes=2, but --topology has 4"),
        (["--topology=v5e:3x5"], "a slice of several hosts has a multiple of 4 chips"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_before(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = launch("run", *COMMON, *arguments, "--dry_run", "--", "true", PATH=str(tmp_path))
    assert done.returncode == (ExitCode.BAD_INPUT if said else 0), done.stderr
    assert said in done.stderr
    assert "hunter2" not in done.stderr


def test_a_set_that_gets_no_further_is_ended(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    for _ in range(3):
        note_start(workdir)
    with pytest.raises(Exception, match="3 starts in a row got no further than the beginning"):
        note_start(workdir)
    (workdir / "checkpoints/20/meta").mkdir(parents=True)
    (workdir / "checkpoints/20/meta/metadata").touch()
    note_start(workdir)


def test_a_workdir_that_ends_with_its_pod_is_refused() -> None:
    done = launch(
        "render", *COMMON, "--processes=2", "--mount=/data=pvc:data", "--", "true", "--workdir=/runs/x"
    )
    assert done.returncode == ExitCode.BAD_INPUT
    assert "error: --workdir=/runs/x lies in no storage that the pods share" in done.stderr
