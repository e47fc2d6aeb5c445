"""What a host has, as one JSON object: its Python, the versions of what trains, and what it sees of a job's workdir.

    python3 - ARGUMENT < probe.py

ARGUMENT is a JSON object: packages; folder, the job's own on the host; workdir ("" looks at none); and token, the name of a file
that is left beside the workdir ("leave"), looked for ("find") or taken away ("clean"), as `doing` says.

Standard library only: it is sent to hosts that have nothing of Vitforge yet.
"""

import contextlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _nearest(path: Path) -> Path:
    """The lowest folder of `path` that is there."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def _steps(workdir: Path) -> list[int]:
    """Of the checkpoints that are whole, as `trainer.workdir` tells them."""
    folders = workdir.glob("checkpoints/*/meta/metadata")
    return sorted(int(file.parts[-3]) for file in folders if file.parts[-3].isdecimal())


def main() -> None:
    """Answers on stdout."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    said: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in asked["packages"]},
    }
    if asked["workdir"]:
        workdir = (Path.cwd() / asked["folder"] / asked["workdir"]).absolute()
        place = _nearest(workdir)
        token = place / asked["token"]
        if asked["doing"] == "leave":
            with contextlib.suppress(OSError):
                token.touch()
        said |= {"place": str(place), "found": token.is_file(), "steps": _steps(workdir)}
        if asked["doing"] == "clean":
            token.unlink(missing_ok=True)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
