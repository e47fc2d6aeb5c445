"""On what a figure was measured: the CPU, its cores, the versions of what computed, and the commit of the code."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "numpy", "onnxruntime", "grpcio")


def cpu_model() -> str:
    """The CPU's name as Linux tells it, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def text() -> str:
    """The machine in a few words, for a table's foot."""
    return f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def facts() -> dict[str, Any]:
    """All that a recorded figure should carry, as plain JSON values; a version or commit that nobody knows is empty."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of this checkout, with -dirty where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
