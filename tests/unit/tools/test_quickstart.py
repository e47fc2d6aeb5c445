"""The quickstart's own bookkeeping: what is done stays done, what was interrupted is made again, strangers' folders are safe."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.command import UserError
from tools import quickstart, steps
from tools.stop_requests import StopRequests
from trainer.workdir import hold


def _claim(workdir: Path, fresh: bool = False, dataset: str = "digits") -> None:
    quickstart._claim(workdir, dataset, fresh)


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


def test_a_workdir_of_another_data_set_is_refused_unless_it_is_removed(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    _claim(workdir)
    _claim(workdir)
    with pytest.raises(
        UserError, match="holds the job on digits; for fashion_mnist give another --workdir, or --fresh"
    ):
        _claim(workdir, dataset="fashion_mnist")
    _claim(workdir, fresh=True, dataset="fashion_mnist")
    with pytest.raises(UserError, match="holds the job on fashion_mnist"):
        _claim(workdir)


def test_a_workdir_in_use_is_not_removed(tmp_path: Path) -> None:
    _claim(tmp_path)
    with hold(tmp_path, "running a quickstart"), pytest.raises(UserError, match="is running a quickstart in"):
        _claim(tmp_path, fresh=True)
    assert (tmp_path / ".quickstart").exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        _claim(tmp_path / "file" / "run")


def _step(running: steps.Steps, made: Path, name: str = "cut") -> dict[str, object]:
    return running.run(name, "tests.support.says_done", str(made), makes=made)


def test_what_an_interrupted_step_left_is_removed_and_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    made, running = tmp_path / "pruned", steps.Steps(tmp_path, StopRequests())
    made.mkdir()
    (made / "half").touch()
    assert _step(running, made) == {"left": []}
    (made / "whole").touch()
    assert _step(steps.Steps(tmp_path, StopRequests()), made) == {"left": []}
    assert (made / "whole").exists()


def test_the_steps_compile_into_one_folder_and_a_users_own_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(name: str) -> object:
        running = steps.Steps(tmp_path / name, StopRequests(), steps.compiling_once("shared"))
        return running.run("ask", "tests.support.says_variable", "JAX_COMPILATION_CACHE_DIR")["value"]

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert told("unset") == "shared"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert told("set") == "mine"


def test_the_end_names_what_was_made_and_commands_that_go_on_from_it(tmp_path: Path) -> None:
    text = quickstart._what_next(tmp_path, "digits", "")
    assert f"Report: {tmp_path}/report.md, its plots beside it" in text
    serve, image, ask = (line.strip() for line in text.splitlines() if line.startswith("    "))
    assert serve == f"python -m serving.main --model_repository={tmp_path}/models --port=8001"
    made = subprocess.run(
        image.replace("python", sys.executable, 1), shell=True, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert Path(ask.split()[-1]).read_bytes().startswith(b"\x89PNG")
