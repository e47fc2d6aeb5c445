"""The local back end with real processes: small children that block until they are told, never by time."""

import contextlib
import io
import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.command import ExitCode
from tools.launchers import gang
from tools.launchers.job import Job
from tools.launchers.local import LocalLauncher

ROOT = Path(__file__).parents[3]
INDEX = "import os, signal, sys\nindex = os.environ['VITFORGE_PROCESS_ID']\n"
# Blocks until a signal ends it; the launcher's own time-out would end a test that waits for ever.
WAIT = "signal.pause()\n"


def attempt(job: Job, log: io.StringIO, logs: Path | None = None) -> tuple[int, str]:
    """Exit code and stdout of a job."""
    output, launcher = io.StringIO(), LocalLauncher()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(log):
        return launcher.attempt(launcher.placed(job), logs).code, output.getvalue()


def run(script: str, logs: Path | None = None, **job: object) -> tuple[int, str, str]:
    """Exit code, stdout and log of a job of `python -c script`."""
    log = io.StringIO()
    settings: dict[str, object] = {"processes": 2, "timeout_s": 60.0, "grace_s": 20.0} | job
    code, output = attempt(Job(("python", "-c", INDEX + script), **settings), log, logs)  # type: ignore[arg-type]
    return code, output, log.getvalue()


def test_every_line_is_headed_by_the_number_of_its_process() -> None:
    code, _, log = run("print('out', index); print('err', index, file=sys.stderr)")
    assert code == ExitCode.DONE
    assert {"[0] out 0", "[0] err 0", "[1] out 1", "[1] err 1"} <= set(log.splitlines())


def test_each_process_learns_its_place_its_devices_and_one_coordinator() -> None:
    script = (
        "import json\n"
        "place = {k: v for k, v in os.environ.items() if k[:3] in ('JAX', 'VIT')}\n"
        "print(json.dumps(place), file=sys.stderr)"
    )
    _, _, log = run(script, processes=3, devices_per_process=4)
    places = [json.loads(line[4:]) for line in log.splitlines() if line[4:].startswith("{")]
    assert sorted(place["VITFORGE_PROCESS_ID"] for place in places) == ["0", "1", "2"]
    assert {place["VITFORGE_NUM_PROCESSES"] for place in places} == {"3"}
    assert {place["JAX_NUM_CPU_DEVICES"] for place in places} == {"4"}
    assert {place["JAX_PLATFORMS"] for place in places} == {"cpu"}
    (coordinator,) = {place["VITFORGE_COORDINATOR"] for place in places}
    assert int(coordinator.rpartition(":")[2]) > 0


def test_the_result_of_process_0_is_all_that_reaches_stdout_even_when_noise_follows_it() -> None:
    code, output, _ = run(
        "print('{\"loss\": 1}'); print('{\"process\": %s}' % index); print('[Gloo] connected')"
    )
    assert (code, output) == (0, '{"process": 0}\n')


def test_progress_and_result_are_shown_of_process_0_alone_and_kept_of_all(tmp_path: Path) -> None:
    script = (
        "from serving.command import progress\n"
        "with progress(1, 'teacher') as bar: bar.advance()\n"
        "print('[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1')\n"
        "print('[Gloo] Rank 1 has lost a peer')\n"
        "print('{\"process\": %s}' % index)"
    )
    _, output, log = run(script, logs=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert output == '{"process": 0}\n'
    shown = [line for line in log.splitlines() if not line.startswith("[launch]")]
    assert sorted(line for line in shown if line.startswith("[1]")) == ["[1] [Gloo] Rank 1 has lost a peer"]
    assert sum("1/1" in line for line in shown) == 1
    assert '[0] {"process": 0}' in shown
    kept = (tmp_path / "process_1.log").read_text()
    assert '{"process": 1}' in kept
    assert "[Gloo] Rank 1 is connected" in kept


def test_a_job_without_a_result_leaves_stdout_empty() -> None:
    assert run("print('no json')")[1] == ""


def test_the_first_process_that_fails_decides_and_the_others_are_ended() -> None:
    code, _, log = run("if index == '1': sys.exit(45)\n" + WAIT, processes=3)
    assert code == ExitCode.DISK_FULL
    assert log.splitlines()[-1] == "error: process 1 of 3 failed first, with exit code 45"
    assert "[launch] process 0 ended with exit code 143 (SIGTERM)" in log
    assert "[launch] process 2 ended with exit code 143 (SIGTERM)" in log


def test_a_survivor_that_fails_in_its_turn_does_not_hide_the_first() -> None:
    survivor = "signal.signal(signal.SIGTERM, lambda *_: os._exit(44))\nprint('ready', flush=True)\n" + WAIT
    code, _, log = run("if index == '1': os.kill(os.getpid(), signal.SIGKILL)\n" + survivor)
    assert code == 137
    assert "error: process 1 of 2 failed first, with exit code 137 (SIGKILL)" in log


def test_a_process_that_ignores_the_request_to_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    # Process 1 fails only when process 0 already ignores SIGTERM: a named pipe orders them.
    script = (
        "pipe = os.environ['PIPE']\n"
        "if index == '1': open(pipe).read(); sys.exit(43)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(pipe, 'w').close()\n" + WAIT
    )
    os.mkfifo(tmp_path / "pipe")
    code, _, log = run(script, env={"PIPE": str(tmp_path / "pipe")}, grace_s=0.0)
    assert code == ExitCode.STALLED
    assert "killing the processes" in log
    assert "[launch] process 0 ended with exit code 137 (SIGKILL)" in log


@pytest.mark.parametrize(("child", "job"), [(0, 0), (2, 2), (3, 1), (42, 42), (44, 44), (134, 134)])
def test_only_codes_of_the_table_leave_the_launcher(child: int, job: int) -> None:
    assert run(f"sys.exit({child})", processes=1)[0] == job


class _Answers(io.StringIO):
    """A log that opens a pipe, on which process 0 waits, whenever the launcher has written a line with one of `words`."""

    def __init__(self, pipe: Path, words: tuple[str, ...]) -> None:
        super().__init__()
        self._pipe, self._words = pipe, words

    def write(self, text: str) -> int:
        if any(word in text for word in self._words):
            self._pipe.open("w").close()
        return super().write(text)


def test_a_process_that_saved_and_left_does_not_hurry_the_others(tmp_path: Path) -> None:
    # Process 0 hears that process 1 has left, and once more when the launcher has dealt with that: a SIGTERM would be pending.
    script = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "if index == '1': sys.exit(42)\n"
        "open(sys.argv[1]).read(); print('still here', flush=True); open(sys.argv[1]).read()\n"
        "sys.exit(9 if signal.sigpending() else 42)"
    )
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    log = _Answers(pipe, ("[launch] process 1 ended", "[0] still here"))
    job = Job(("python", "-c", INDEX + script, str(pipe)), processes=2, timeout_s=60.0)
    assert attempt(job, log)[0] == ExitCode.PREEMPTED
    assert "[launch] process 0 ended with exit code 42" in log.getvalue()


def test_a_job_beyond_its_time_ends_with_the_code_for_stalled() -> None:
    code, _, log = run(WAIT, timeout_s=0.2)
    assert code == ExitCode.STALLED
    assert log.splitlines()[-1] == "error: not done within --timeout_s=0.2"


def test_what_a_process_left_running_does_not_keep_the_job_open() -> None:
    # The grandchild holds the pipes; without its end the launcher would read for ever.
    code, _, _ = run(
        "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"
    )
    assert code == ExitCode.DONE


def test_each_process_has_a_log_file_and_an_earlier_run_is_not_lost(tmp_path: Path) -> None:
    for word in ("first", "second"):
        run(f"print('{word}', index)", logs=tmp_path / "logs")
    assert (tmp_path / "logs" / "process_1.log").read_text() == "first 1\nsecond 1\n"
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["process_0.log", "process_1.log"]


def test_the_coordinators_port_is_held_for_the_job_and_open_to_a_server_that_shares_it() -> None:
    script = (
        "import socket\n"
        "host, _, port = os.environ['VITFORGE_COORDINATOR'].partition(':')\n"
        "def taken(share):\n"
        "    with socket.socket() as one:\n"
        "        if share: one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "        try: one.bind((host, int(port))); one.listen()\n"
        "        except OSError as error: return error.strerror\n"
        "    return 'mine'\n"
        "print('alone:', taken(False)); print('shared:', taken(True))"
    )
    _, _, log = run(script, processes=1)
    assert {"[0] alone: Address already in use", "[0] shared: mine"} <= set(log.splitlines())


def test_the_processes_of_a_launcher_that_is_killed_are_asked_to_end_and_then_killed(tmp_path: Path) -> None:
    # Process 0 saves on SIGTERM and leaves a child; process 1 does not listen. Each holds a pipe open for as long as it lives.
    script = INDEX + (
        "import subprocess\n"
        "def save(*_): open('saved', 'w').close(); sys.exit(42)\n"
        "signal.signal(signal.SIGTERM, save if index == '0' else signal.SIG_IGN)\n"
        "life = os.open('life', os.O_WRONLY)\n"
        "if index == '0': subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], pass_fds=[life])\n"
        "print('ready', flush=True)\n" + WAIT
    )
    os.mkfifo(tmp_path / "life")
    life = os.open(tmp_path / "life", os.O_RDONLY | os.O_NONBLOCK)
    command = ["-m", "tools.launch", "run", "--processes=2", "--grace_s=1", "--", "python", "-c", script]
    launcher = subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert launcher.stderr is not None
    waiting = {"[0] ready\n", "[1] ready\n"}
    while waiting:
        waiting.discard(launcher.stderr.readline())
    launcher.kill()
    os.set_blocking(life, True)
    with selectors.DefaultSelector() as selector:
        selector.register(life, selectors.EVENT_READ)
        assert selector.select(timeout=60), "a process lives on"
    assert os.read(life, 1) == b""  # the last writer has closed it: all three are dead
    os.close(life)
    assert (tmp_path / "saved").exists()
    launcher.communicate()


def test_a_job_does_not_depend_on_its_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone.py").write_text("")
    monkeypatch.setattr(gang, "_GUARD", tmp_path / "gone.py")
    if not Path("/proc/self/task").is_dir():
        pytest.skip("no /proc here to see the guard's end in")
    # The only process waits until it is the only child that lives: the dead have no command line.
    script = (
        "def siblings():\n"
        "    launcher = os.getppid()\n"
        "    pids = open(f'/proc/{launcher}/task/{launcher}/children').read().split()\n"
        "    pids = set(pids) - set(os.environ['BEFORE'].split())\n"  # a server of other tests, say
        "    return [pid for pid in pids if open(f'/proc/{pid}/cmdline').read()]\n"
        "while len(siblings()) > 1: pass"
    )
    before = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    assert run(script, processes=1, env={"BEFORE": before})[0] == ExitCode.DONE


@pytest.mark.parametrize(
    ("asked", "job"), [(signal.SIGTERM, ExitCode.PREEMPTED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_a_request_to_stop_reaches_every_process_and_process_0_answers(
    asked: signal.Signals, job: ExitCode
) -> None:
    script = (
        INDEX + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\nprint('ready', flush=True)\n" + WAIT
    )
    command = [
        sys.executable,
        "-m",
        "tools.launch",
        "run",
        "--processes=2",
        "--timeout_s=60",
        "--",
        "python",
        "-c",
        script,
    ]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert launcher.stderr is not None
    waiting = {"[0] ready\n", "[1] ready\n"}
    while waiting:
        waiting.discard(launcher.stderr.readline())
    launcher.send_signal(asked)
    log = launcher.stderr.read()
    assert launcher.wait() == job
    assert (
        f"[launch] {asked.name}: asking the processes to save and end; waiting for 0, 1, up to 30 s (--grace_s)"
        in log
    )
    assert log.count("ended with exit code 42") == 3  # one line for each process, and the last for the job


def test_a_member_that_prints_without_end_is_told_of_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life do not wait for a silence."""
    monkeypatch.setattr(gang, "_BEAT_S", 0.2)
    # Ends well when it was told three times; prints as fast as it can meanwhile.
    script = (
        "import sys, threading\n"
        "heard = []\n"
        "threading.Thread(target=lambda: [heard.append(line) for line in sys.stdin], daemon=True).start()\n"
        "while len(heard) < 4: print('a line')"
    )
    member = gang.Member((sys.executable, "-u", "-c", script), {}, told="{}")
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        assert gang.Gang(Job(("true",), processes=1, timeout_s=60.0), [member]).run().code == ExitCode.DONE


@pytest.mark.parametrize("closed", ["stderr", "stdout"])
def test_a_reader_that_has_gone_does_not_end_the_processes(tmp_path: Path, closed: str) -> None:
    script = "import time\nfor _ in range(50): print('line')\nopen('done', 'w').close()"
    command = [sys.executable, "-m", "tools.launch", "run", "--", "python", "-u", "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: write}
    launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, **streams)  # type: ignore[call-overload]
    os.close(write)
    launcher.wait(timeout=60)
    assert (tmp_path / "done").exists()
