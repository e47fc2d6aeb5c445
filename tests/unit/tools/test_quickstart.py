"""The quickstart's own bookkeeping: what is done stays done, what was interrupted is made again, strangers' folders are safe."""

from pathlib import Path

import pytest

from serving.command import UserError
from tools import quickstart


def _claim(workdir: Path, fresh: bool = False) -> None:
    quickstart._claim(workdir, fresh)


def test_a_folder_of_somebody_else_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "mine.txt").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(UserError, match="holds something that no quickstart has written"):
            _claim(tmp_path, fresh)
    assert (tmp_path / "steps" / "mine.txt").read_text() == "precious"


def test_fresh_removes_what_an_interrupted_quickstart_left(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    _claim(workdir)
    (workdir / "teacher" / "checkpoints").mkdir(parents=True)
    _claim(workdir, fresh=True)
    assert not (workdir / "teacher").exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        _claim(tmp_path / "file" / "run")


def _step(steps: quickstart.Steps, made: Path, name: str = "cut") -> dict[str, object]:
    return steps.run(name, "tests.support.says_done", str(made), makes=made)


def test_what_an_interrupted_step_left_is_removed_and_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    made, steps = tmp_path / "pruned", quickstart.Steps(tmp_path)
    made.mkdir()
    (made / "half").touch()
    assert _step(steps, made) == {"left": []}
    (made / "whole").touch()
    assert _step(quickstart.Steps(tmp_path), made) == {"left": []}
    assert (made / "whole").exists()
