"""Jobs with a name: their record, sweeps, files that describe them, and what is checked before they start."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.command import ExitCode, UserError
from tests.support.launches import launch
from tools.launchers import attended, sweep
from tools.launchers.job import Job

ROOT = Path(__file__).parents[3]
WAITS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(42)); print('ready', flush=True); signal.pause()"
# A run as far as a sweep sees one: it measures what it was given, in the workdir.
MEASURES = """
import json, os, sys
values = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
os.makedirs(values["workdir"], exist_ok=True)
with open(values["workdir"] + "/metrics.jsonl", "a") as file:
    print(json.dumps({"step": 5, "loss": float(values["config.lr"]), "validation_top1": 0.5}), file=file)
sys.exit(int(values.get("config.code", 0)))
"""


def test_a_job_with_a_name_is_found_again(tmp_path: Path) -> None:
    records = f"--records={tmp_path}"
    # Process 0 fails when process 1 has ended.
    says = (
        "import os, sys; index = os.environ['VITFORGE_PROCESS_ID']; print('here', index, flush=True)\n"
        "if index == '0': open(sys.argv[1]).read(); sys.exit(45)\n"
        "open(sys.argv[1], 'w').close()"
    )
    os.mkfifo(tmp_path / "pipe")
    done = launch(
        "run", records, "--name=one", "--processes=2", "--", "python", "-c", says, str(tmp_path / "pipe")
    )
    assert done.returncode == ExitCode.DISK_FULL
    status = launch("status", records, "--name=one")
    said = json.loads(status.stdout)
    assert (said["state"], said["code"], said["attempt"]) == ("ended", 45, 0)
    assert "failed first, with exit code 45" in said["why"]
    assert status.stderr.splitlines()[1].split()[:5] == ["one", "local", "ended", "45", "0"]
    assert sorted(launch("logs", records, "--name=one").stdout.splitlines()) == ["[0] here 0", "[1] here 1"]
    assert launch("logs", records, "--name=one", "--process=1").stdout == "[1] here 1\n"
    assert launch("status", records, "--name=one", "--wait").returncode == ExitCode.DISK_FULL
    assert (tmp_path / "one/rendered/processes.sh").read_text().count("VITFORGE_PROCESS_ID=") == 2
    (row,) = json.loads(launch("status", records).stdout)["jobs"]
    assert (row["name"], row["state"]) == ("one", "ended")


def test_a_job_that_nobody_knows_is_named_beside_those_there_are(tmp_path: Path) -> None:
    launch("run", f"--records={tmp_path}", "--name=one", "--", "true")
    done = launch("logs", f"--records={tmp_path}", "--name=two")
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stderr == f"error: no job 'two' in {tmp_path}; there is: one\n"


def start(*arguments: str) -> subprocess.Popen[str]:
    launcher = subprocess.Popen(
        [sys.executable, "-m", "tools.launch", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert launcher.stderr is not None
    while "[0] ready" not in launcher.stderr.readline():
        assert launcher.poll() is None
    return launcher


def test_a_running_job_is_followed_refused_a_second_time_and_stopped(tmp_path: Path) -> None:
    job = [f"--records={tmp_path}", "--name=one", "--max_restarts=3"]
    launcher = start("run", *job, "--", "python", "-c", WAITS)
    named = job[:2]
    follow = subprocess.Popen(
        [sys.executable, "-m", "tools.launch", "logs", "--follow", *named], stdout=subprocess.PIPE, text=True
    )
    assert json.loads(launch("status", *named).stdout)["state"] == "running"
    second = launch("run", *job, "--", "true")
    assert second.returncode == ExitCode.BAD_INPUT
    assert "is running a job of this name in" in second.stderr
    assert "give this one another --name" in second.stderr
    stopped = launch("stop", *named)
    assert json.loads(stopped.stdout)["code"] == ExitCode.PREEMPTED
    launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.PREEMPTED
    assert follow.communicate(timeout=60)[0] == "[0] ready\n"
    assert follow.returncode == 0


def test_a_job_whose_launcher_was_killed_is_lost(tmp_path: Path) -> None:
    job = [f"--records={tmp_path}", "--name=one", "--grace_s=1"]
    launcher = start("run", *job, "--", "python", "-c", WAITS)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=60)
    said = json.loads(launch("status", *job[:2]).stdout)
    assert (said["state"], said["why"], said["code"]) == ("lost", "its launcher died", None)


def test_a_sweep_is_a_job_for_each_combination_and_goes_on_where_it_was(tmp_path: Path) -> None:
    job = [f"--records={tmp_path / 'records'}", "--name=grid", "--sweep", "lr=0.1,0.2", "code=0,2"]
    behind = ["--", "python", "-c", MEASURES, f"--workdir={tmp_path / 'run'}"]
    done = launch("run", *job, *behind)
    assert done.returncode == ExitCode.BAD_INPUT  # of the first that failed
    named = [*job[:1], "--name=grid"]
    rows = json.loads(launch("status", *named).stdout)["jobs"]
    assert [(row["job"], row["state"], row["code"], row["loss"]) for row in rows] == [
        ("lr=0.1,code=0", "ended", 0, 0.1),
        ("lr=0.1,code=2", "ended", 2, 0.1),
        ("lr=0.2,code=0", "ended", 0, 0.2),
        ("lr=0.2,code=2", "ended", 2, 0.2),
    ]
    assert "lr=0.2,code=0" in done.stderr
    assert "validation_top1" in done.stderr
    other = launch("run", *job[:2], "--sweep", "lr=0.3", *behind)
    assert other.returncode == ExitCode.BAD_INPUT
    assert "error: results of another sweep are recorded as grid, such as --workdir=" in other.stderr
    again = launch("run", *job, *behind)
    assert [line for line in again.stderr.splitlines() if "is done" in line] == [
        "[launch] grid-0 is done",
        "[launch] grid-2 is done",
    ]
    assert len((tmp_path / "run/lr=0.1,code=0/metrics.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "run/lr=0.1,code=2/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr"], "--sweep lr: KEY=VALUE,VALUE… is expected"),
        (["lr=1,"], "--sweep lr=1,: KEY=VALUE,VALUE… is expected"),
        (["lr=1,1"], "is given twice"),
        (["lr=1", "lr=2"], "is given twice"),
    ],
)
def test_words_that_are_no_grid_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sweep.points(Job(("true", "--workdir=x"), "a"), words)


def test_values_in_brackets_are_one() -> None:
    found = sweep.points(Job(("true", "--workdir=x/"), "a"), ["sizes=(1,2),(3,4)"])
    assert [point.job.command for point in found] == [
        ("true", "--workdir=x/", "--config.sizes=(1,2)", "--workdir=x/sizes=(1,2)"),
        ("true", "--workdir=x/", "--config.sizes=(3,4)", "--workdir=x/sizes=(3,4)"),
    ]


DESCRIBED = """
name = "described"
processes = 2
records = "RECORDS"
command = ["python", "-c", "import os, sys; print(os.environ['A'], sys.argv[1:])", "$(id) 'x'"]

[env]
A = "b c"
"""


def test_a_file_describes_a_job_and_what_is_typed_stands_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(DESCRIBED.replace("RECORDS", str(tmp_path / "records")))
    done = launch("run", f"--job={file}", "--processes=1")
    assert done.returncode == 0, done.stderr
    assert "[0] b c [\"$(id) 'x'\"]" in done.stderr
    assert "[1]" not in done.stderr
    assert (tmp_path / "records/described").is_dir()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is no TOML: "),
        ("command = 'python'", "command must be a list of strings"),
        ("[nam]\na = 1", "'nam' is a table; tables are env, secret and sweep"),
        ("[sweep]\nx = 3", "sweep must be a table of lists"),
        ("sweep = 3", "sweep must be a table of lists"),
        ("job = 'x'", "names no other file"),
        ("proceses = 2", "proceses"),
    ],
)
def test_a_file_that_describes_no_job_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    done = launch("run", f"--job={file}", "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.BAD_INPUT, 1)
    assert said in done.stderr


TRAINING = ["--", "python", "-m", "trainer.main", "--config=configs/digits.py:teacher", "--workdir=runs/x"]


@pytest.mark.parametrize(
    ("arguments", "training", "said"),
    [
        (
            ["--processes=2", "--devices_per_process=4"],
            ["--config.batch=100"],
            "batch=100 cannot be cut over 8 data shards; use a multiple, such as 96 or 104 (2 processes with 4 devices each)",
        ),
        (
            ["--processes=2"],
            ["--config.mesh.model=4"],
            "mesh data=-1 fsdp=1 model=4 does not fit 2 devices",
        ),
        (["--backend=slurm", "--processes=2"], ["--config.bach=1"], "unknown key 'bach', nearest is 'batch'"),
        (
            ["--backend=tpu_vm", "--project=p", "--zone=z", "--topology=v5e:4x4", "--slices=2"],
            [],
            "mesh.slices=1, but --slices=2",
        ),
        ([], ["--workdri=x"], "Unknown command line flag 'workdri'"),
        ([], ["--workdir=gs://bucket/run"], "--workdir=gs://bucket/run is a URL; give a folder"),
        (["--backend=slurm", "--time_limit=soon"], [], "--time_limit=soon: Slurm writes 30 (minutes)"),
        (["--plan"], [], "--plan compiles a training (python -m trainer.main …) for a --topology"),
    ],
)
def test_a_training_that_does_not_fit_is_refused_before_anything_starts(
    arguments: list[str], training: list[str], said: str, tmp_path: Path
) -> None:
    done = launch("run", f"--records={tmp_path}", "--name=x", *arguments, *TRAINING, *training)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.BAD_INPUT, 1), done.stderr
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def attend(
    folder: Path, told: dict[str, object], *lines: str, silence_s: float = 60.0
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    job = {
        "folder": str(folder),
        "env": {},
        "secret_files": {},
        "grace_s": 30,
        "silence_s": silence_s,
        **told,
    }
    process = subprocess.Popen(
        [sys.executable, attended.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write("".join(f"{line}\n" for line in (json.dumps(job), *lines)))
    process.stdin.flush()
    return process


def test_an_attended_process_ends_when_it_is_asked_to_when_nobody_is_heard_or_all_is_closed(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WAITS]
    with contextlib.ExitStack() as stack:
        asked, unheard, closed = (
            stack.enter_context(attend(tmp_path / str(number), {"command": command}, silence_s=silence_s))
            for number, silence_s in enumerate((60, 1, 60))
        )
        for process in (asked, unheard, closed):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        assert asked.stdin is not None
        assert closed.stdin is not None
        asked.stdin.write("stop\n")
        asked.stdin.flush()
        closed.stdin.close()
        assert [process.wait(timeout=60) for process in (asked, unheard, closed)] == [42, 42, 42]


def test_an_attended_process_of_an_earlier_launcher_is_killed(tmp_path: Path) -> None:
    """On a host that was cut off and is back, it would write to the workdir of the one that follows."""
    told: dict[str, object] = {"command": [sys.executable, "-c", WAITS]}
    with attend(tmp_path, told) as earlier:
        assert earlier.stdout is not None
        assert earlier.stdout.readline() == "ready\n"
        with attend(tmp_path, told) as later:
            assert later.stdout is not None
            assert later.stdout.readline() == "ready\n"
            assert earlier.wait(timeout=60) == 128 + signal.SIGKILL


def test_an_attended_process_ends_with_its_own_code(tmp_path: Path) -> None:
    for command, code in (
        (["sh", "-c", "exit 43"], 43),
        (["sh", "-c", "kill -9 $$"], 137),
        (["/no/program"], 2),
        (["sh", "-c", "exit 255"], 1),  # which ssh keeps for itself
    ):
        with attend(tmp_path, {"command": command}) as process:
            assert process.wait(timeout=60) == code
    again = subprocess.run([sys.executable, attended.__file__], input="\n", text=True, timeout=60)
    assert again.returncode == ExitCode.LOST_PEER  # the job's line went to a connection that broke
