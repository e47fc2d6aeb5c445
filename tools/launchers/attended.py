"""One process of a job on a host that the launcher reaches over a network; it lives as long as the launcher is heard.

    python3 attended.py < LINES

The first line is a JSON object: command, folder (to run in), env, secret_files (variables by the files that hold them), grace_s,
and silence_s. Then an empty line now and then says that the launcher lives; "stop" asks the process to end. When the lines end,
or none comes for silence_s, as when a host is cut off, the process group gets SIGTERM, on which the trainer saves, and SIGKILL
after the grace. The exit code is that of the process, 128 + signal for a death; 44 (lost) when the lines do not begin with the
job, as when gcloud, whose connection broke, runs the command again by itself.

A process of the same place in the same job that an earlier launcher left here, on a host that was cut off, say, is killed before:
two would write to one workdir. `.attended-N` in the folder names it.

Standard library only, and started by its path: hosts need nothing for it but a Python.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_LOOK_S, _SOON_S = 1.0, 0.05
_LOST = 44
_BROKEN = 255  # is what ssh says of a broken connection: no process may end so


class _Attended:
    """The process, and when the launcher was last heard."""

    def __init__(self, job: dict[str, Any]) -> None:
        secrets = {
            name: Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            for name, path in job["secret_files"].items()
        }
        self._grace_s, self._silence_s = float(job["grace_s"]), float(job["silence_s"])
        self._heard_s, self._deadline_s = time.monotonic(), float("inf")
        mark = Path(job["folder"]) / f".attended-{job['env'].get('VITFORGE_PROCESS_ID', '0')}"
        _end_earlier(mark, job["command"])
        self._process = subprocess.Popen(
            job["command"],
            cwd=job["folder"],
            env=os.environ | job["env"] | secrets,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        mark.write_text(
            json.dumps({"host": socket.gethostname(), "group": self._process.pid}), encoding="utf-8"
        )

    def listen(self) -> None:
        """Hears the launcher until it says no more."""
        for line in sys.stdin:
            self._heard_s = time.monotonic()
            if line.strip() == "stop":
                self._end()
        self._end()

    def code(self) -> int:
        """Stays until the process has ended."""
        while True:
            try:
                code = self._process.wait(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                now_s = time.monotonic()
                if now_s - self._heard_s > self._silence_s:
                    self._end()
                if now_s > self._deadline_s:
                    self._signal(signal.SIGKILL)
                continue
            self._signal(signal.SIGKILL)  # what it left behind
            if code == _BROKEN:
                return 1
            return 128 - code if code < 0 else code

    def _end(self) -> None:
        if self._deadline_s == float("inf"):
            self._deadline_s = time.monotonic() + self._grace_s
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _end_earlier(mark: Path, command: list[str]) -> None:
    """Kills what the mark names, if it still runs this command on this host, and waits until it is gone."""
    try:
        said = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    while said["host"] == socket.gethostname() and _runs(said["group"], command):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(said["group"], signal.SIGKILL)
        time.sleep(_SOON_S)


def _runs(pid: int, command: list[str]) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return words[:-1] == command


def main() -> int:
    """Runs what the first line says."""
    # A closed connection is told by the end of stdin; output that nobody reads any more must not end this process first.
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    first = sys.stdin.readline()
    if not first.startswith("{"):
        return _LOST
    try:
        attended = _Attended(json.loads(first))
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    threading.Thread(target=attended.listen, daemon=True).start()
    return attended.code()


if __name__ == "__main__":
    # Not sys.exit: the interpreter would wait for the thread's hold on stdin.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
