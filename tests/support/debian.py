"""Programs that tests need besides those of Python: installed from Debian's packages where root may, and no service is started."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# Programs of the administrator are not in everybody's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PATIENCE_S = 300.0
_POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks it before it starts a service; 101 forbids
# Installing one of these where systemd runs would enable its service for good.
_WITH_SERVICES = {"openssh-server"}


def program(name: str) -> str:
    """The path of a program, "" if there is none."""
    return shutil.which(name, path=PATH) or ""


def missing(packages: Mapping[str, str]) -> str:
    """Why these programs, named with their packages, cannot be had here, for a skip; "" when they are there or now are."""
    absent = _absent(packages)
    if not absent:
        return ""
    problem = _install({packages[name] for name in absent})
    absent = _absent(packages)
    return f"no {', '.join(absent)}: {problem or 'its package does not hold it'}" if absent else ""


def _absent(packages: Mapping[str, str]) -> list[str]:
    return [name for name in packages if not program(name)]


def _install(packages: set[str]) -> str:
    """Installs by apt-get; why not, or ""."""
    if os.geteuid() or not program("apt-get"):
        return f"apt-get install {' '.join(sorted(packages))} (needs root, on Debian)"
    if _WITH_SERVICES & packages and Path("/run/systemd/system").exists():
        return f"to install {', '.join(sorted(_WITH_SERVICES & packages))} would enable a service of systemd"
    with _no_services():
        said = _apt("install", "-y", "--no-install-recommends", *sorted(packages))
        if said:  # the lists may be old, or not there
            said = _apt("update") or _apt("install", "-y", "--no-install-recommends", *sorted(packages))
    return said


def _apt(*arguments: str) -> str:
    """Runs apt-get; what it said if it failed. A file takes the output: a pipe would wait for what apt leaves running."""
    locks = ("-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::http::Timeout=20")
    with tempfile.TemporaryFile("w+") as said:
        try:
            subprocess.run(
                ["apt-get", *locks, *arguments],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=_PATIENCE_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said.seek(0)
            return f"{error}\n{said.read()[-2000:]}"
    return ""


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """No service is started by an installation, as far as the machine has no rule of its own about that."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
