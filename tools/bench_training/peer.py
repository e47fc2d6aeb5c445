"""Others' code in an environment of its own (`make tf`), asked round by round over its stdin and stdout."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from serving.command import UserError

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = _ROOT / ".venv-tf/bin/python"


def installed() -> bool:
    """Whether the environment is there."""
    return (_ROOT / ".venv-tf/.ready").is_file()


def require() -> None:
    """Refuses to go on without it."""
    if not installed():
        raise UserError("there is no TensorFlow here; make tf installs it in an environment of its own")


class Peer:
    """One process of `tools.bench_training.tf_peer`; `said` is what it told when it was ready. Use as a context."""

    def __init__(self, arguments: list[str], told: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [str(_PYTHON), "-m", "tools.bench_training.tf_peer", *arguments],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: dict[str, Any] = self._exchange(told)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, what: dict[str, Any]) -> float:
        """One measurement."""
        return float(self._exchange(what)["value"])

    def _exchange(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print there, too
                found: dict[str, Any] = json.loads(line)
                return found
        raise UserError(f"what is compared with ended with code {self._process.wait()}; see above")
