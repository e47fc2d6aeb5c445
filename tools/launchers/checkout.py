"""The code that is shipped to hosts: this checkout's files that git knows, or would add."""

import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.command import UserError
from tools.launchers import programs

FOLDER = Path(__file__).resolve().parents[2]
LISTED = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")


def files() -> list[str]:
    """Their paths from `FOLDER`; those that are gone are left out.

    Raises:
      UserError: when the launcher runs from no checkout, or git does not say.
    """
    if not (FOLDER / "pyproject.toml").is_file():
        raise UserError(
            "there is no checkout here to ship to the hosts; launch from one, or give --noship where they have Vitforge"
        )
    done = programs.run(*LISTED, folder=str(FOLDER))
    if done.returncode:
        raise UserError(
            f"git does not say what belongs to the checkout ({programs.why_failed(done)}); launch from a clone, or give --noship "
            "where the hosts have Vitforge"
        )
    return [name for name in done.stdout.split("\0") if name and (FOLDER / name).exists()]


@contextlib.contextmanager
def packed(name: str) -> Iterator[str]:
    """The path of an archive (tar, gzip) called `name` with these files, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with tarfile.open(path, "w:gz") as archive:
            for file in files():
                archive.add(FOLDER / file, file, recursive=False)
        yield str(path)
