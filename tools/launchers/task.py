"""One task of a Slurm step: runs the command and notes how and when it ended; srun tells the highest code of all, not the first.

    python3 task.py FOLDER COMMAND…

A signal to the step reaches the command by itself; this process stays to see its end. Standard library only, and started by its
path.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    """Runs the command; its exit code, 128 + signal for a death."""
    folder, *command = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        signal.signal(
            number, lambda *_: None
        )  # a handler, which a child does not inherit as it would SIG_IGN
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        code = 2
    code = 128 - code if code < 0 else code
    note = Path(folder) / f"ended_{os.environ['SLURM_PROCID']}.json"
    note.write_text(json.dumps({"code": code, "at_s": time.time()}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
