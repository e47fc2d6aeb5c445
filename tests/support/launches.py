"""The launcher as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 240


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m tools.launch` to its end, from the root of the repository."""
    return subprocess.run(
        [sys.executable, "-m", "tools.launch", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
