"""Ends the processes of a job whose launcher died without doing so: by SIGKILL, or for want of memory.

A process of its own, in a session of its own, whose stdin is a pipe from the launcher. When the launcher dies, however it dies, the
kernel closes the pipe. Until then each line says `+PID` (a process group to look after) or `-PID` (it has ended).

    python guard.py GRACE_S < PIPE

Standard library only, and started by its path: it costs the job some milliseconds and 10 MB.
"""

import contextlib
import os
import signal
import sys
import time

_POLL_S = 0.05


def main() -> None:
    """Waits for the end of stdin, then ends what is left: SIGTERM, on which the trainer saves, and SIGKILL after the grace."""
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    _signal(groups, signal.SIGTERM)
    deadline_s = time.monotonic() + float(sys.argv[1])
    while (groups := {group for group in groups if _runs(group)}) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    _signal(groups, signal.SIGKILL)


def _signal(groups: set[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
