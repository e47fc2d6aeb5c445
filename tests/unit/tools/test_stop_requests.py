"""What asks a command to stop asks its children first, as real processes that block until they are told."""

import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_STEPS = """
import sys
from pathlib import Path
from serving import command
from serving.command import UserError
from tools import serving_process, steps, stop_requests
from tools.stop_requests import Stopped, StopRequests

def main(argv):
    try:
        with StopRequests() as stop:
            running = steps.Steps(Path(argv[0]), stop)
            if argv[1] == "serve":
                serving_process.start = lambda command: stop_requests.start([command[0], "serving_main.py"])
                with serving_process.serving(Path("models"), stop):
                    print("measuring", file=sys.stderr, flush=True)
                    sys.stdin.read()
            running.run("teacher", "child")
            running.run("student", "child")
    except Stopped as stopped:
        raise UserError(f"stopped by {stopped.number.name}", 128 + stopped.number)

command.run_command(main)
"""
_CHILD = """
import signal, sys, threading
asked = threading.Event()
def hear(number, frame):
    asked.set()
    print("child heard", signal.Signals(number).name, file=sys.stderr, flush=True)
    {answer}
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, {action})
print("child is there", file=sys.stderr, flush=True)
asked.wait()
print("{{}}")
"""


def start(folder: Path, child: str, work: str = "train") -> "subprocess.Popen[str]":
    """The steps as a process of their own; `child` is what each of them runs. Whoever holds `life` open still lives."""
    (folder / "child.py").write_text(child)
    os.mkfifo(folder / "life")
    command = [sys.executable, "-c", _STEPS, str(folder / "run"), work]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stderr is not None
    while words not in (line := process.stderr.readline()):
        assert line, words


@pytest.mark.parametrize(
    ("asked", "answer", "code", "says"),
    [
        (signal.SIGTERM, "sys.exit(42)", 42, "SIGTERM: step 'teacher' ended with exit code 42; run the same"),
        (
            signal.SIGINT,
            "sys.exit(130)",
            130,
            "SIGINT: step 'teacher' ended with exit code 130; run the same",
        ),
        (signal.SIGHUP, "sys.exit(42)", 42, "SIGHUP: step 'teacher' ended with exit code 42; run the same"),
        # A step that was about to be done is done, and the next one is not begun.
        (signal.SIGTERM, "pass", 143, "stopped by SIGTERM"),
    ],
)
def test_a_step_hears_the_request_and_is_awaited(
    asked: signal.Signals, answer: str, code: int, says: str, tmp_path: Path
) -> None:
    process = start(tmp_path, _CHILD.format(answer=answer, action="hear"))
    wait_for(process, "child is there")
    process.send_signal(asked)
    _, log = process.communicate(timeout=60)
    assert process.returncode == code
    heard = "SIGINT" if asked == signal.SIGINT else "SIGTERM"
    assert log.splitlines()[:-1][-1] == f"child heard {heard}"
    assert log.splitlines()[-1].startswith(f"error: {says}")
    assert (tmp_path / "run" / "steps" / "teacher.json").exists() == (answer == "pass")


def test_a_step_that_dies_of_the_request_gives_its_death_as_the_code(tmp_path: Path) -> None:
    process = start(tmp_path, _CHILD.format(answer="", action="signal.SIG_DFL"))
    wait_for(process, "child is there")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "step 'teacher' ended with exit code 143 (SIGTERM); run the same command to go on" in log


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_the_command_that_started_it(asked: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "serving_main.py").write_text(
        "import os, signal, sys\n"
        "os.open('life', os.O_WRONLY)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('{\"port\": 1}', flush=True)\n"
        "signal.pause()\n"
    )
    process = start(tmp_path, "", "serve")
    life = os.open(tmp_path / "life", os.O_RDONLY | os.O_NONBLOCK)
    wait_for(process, "measuring")
    process.send_signal(asked)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + asked
    assert log.splitlines()[-1] == f"error: stopped by {asked.name}"
    os.set_blocking(life, True)
    with selectors.DefaultSelector() as selector:
        selector.register(life, selectors.EVENT_READ)
        assert selector.select(timeout=60), "the server lives on"
    assert os.read(life, 1) == b""
    os.close(life)
