"""Programs of others that a back end runs and asks: ssh, sbatch, kubectl, gcloud, git."""

import re
import shutil
import subprocess

from serving.command import UserError
from tools.launchers.launcher import Finding


def run(
    *words: str, told: str = "", timeout_s: float | None = None, folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, `told` on its stdin; what it says is kept, and undecodable bytes of it replaced.

    Raises:
      UserError: when it is not on this machine.
    """
    try:
        return subprocess.run(
            words,
            input=told,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=folder,
            check=False,
        )
    except OSError as error:
        raise UserError(f"{words[0]} cannot be run on this machine ({error.strerror}); install it") from error


def require(*words: str, called: str = "", told: str = "", folder: str | None = None) -> str:
    """The stdout of a program, which is `called` so in a message, by its own name where nothing is said.

    Raises:
      UserError: with what it said, when it fails.
    """
    done = run(*words, told=told, folder=folder)
    if done.returncode:
        raise UserError(f"{called or words[0]} failed: {why_failed(done)}")
    return done.stdout


def why_failed(done: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed said: its first line with the word error, else its last."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and no word why"]
    return next((line for line in lines if re.match(r"(\S+: )?error\b", line, re.IGNORECASE)), lines[-1])


def missing(*names: str, remedy: str = "install it") -> list[Finding]:
    """Those programs that are not on this machine."""
    return [
        Finding(f"program {name}", "is not on this machine", remedy)
        for name in names
        if not shutil.which(name)
    ]


def require_there(*names: str, remedy: str = "install it") -> None:
    """Refuses a machine on which one of these programs is missing.

    Raises:
      UserError: naming it.
    """
    for finding in missing(*names, remedy=remedy):
        raise UserError(f"{finding.what} {finding.problem}; {remedy}")
