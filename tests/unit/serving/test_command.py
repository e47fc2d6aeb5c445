"""The frame of every command: exit codes, one-line errors, the result on the last line of stdout, help, progress."""

import errno
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from serving import command, installation
from serving.command import ExitCode, UserError
from tests.support import servers
from tests.support.servers import ROOT

Main = Callable[[list[str]], Mapping[str, object] | None]


def ended_with(main: Main, *argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        command.run_command(main, list(argv))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def failing(error: BaseException) -> Main:
    def main(argv: list[str]) -> None:
        raise error

    return main


def test_the_exit_codes_are_the_table_that_launcher_and_watchdog_share() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "BUG": 1,
        "BAD_INPUT": 2,
        "PREEMPTED": 42,
        "STALLED": 43,
        "LOST_PEER": 44,
        "DISK_FULL": 45,
        "INTERRUPTED": 130,
    }


def test_the_result_is_one_json_object_on_the_last_line_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> dict[str, object]:
        print("something said on the way")
        return {"top1": 0.5, "said": "two\nlines"}

    assert ended_with(main) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"top1": 0.5, "said": "two\nlines"}
    assert err == ""


def test_numbers_that_json_cannot_hold_are_null_in_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    nested = {"loss": float("nan"), "deep": [{"rate": float("inf")}, (-float("inf"), 0.5)], "steps": 2}
    assert ended_with(lambda argv: nested) == ExitCode.DONE
    assert capsys.readouterr().out == '{"loss": null, "deep": [{"rate": null}, [null, 0.5]], "steps": 2}\n'


def test_a_command_without_a_result_prints_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(lambda argv: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_user_error_is_one_line_on_stderr_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(failing(UserError("no such model;\n   there is: tiny"))) == 2
    assert capsys.readouterr() == ("", "error: no such model; there is: tiny\n")


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, ExitCode.STALLED, ExitCode.LOST_PEER])
def test_a_user_error_may_carry_a_code_of_its_own(code: ExitCode, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(failing(UserError("preempted", code))) == code
    assert capsys.readouterr().err == "error: preempted\n"


def test_a_full_disk_is_code_45_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(failing(OSError(28, "No space left on device", "/x/model.onnx"))) == 45
    err = capsys.readouterr().err
    assert err.startswith("error: no space left on the disk")
    assert "/x/model.onnx" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), KeyError("x"), ZeroDivisionError()])
def test_anything_else_is_our_bug_and_shows_its_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_with(failing(error)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback (most recent call last)" in err


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_command_that_exits_by_itself_keeps_its_code() -> None:
    assert ended_with(failing(SystemExit(137))) == 137


def with_flags(argv: list[str]) -> dict[str, object]:
    """A command with flags."""
    values = flags.FlagValues()
    flags.DEFINE_integer("port", 8001, "Port to listen on.", 0, 65535, flag_values=values)
    flags.DEFINE_string("model", None, "Which model.", flag_values=values)
    flags.DEFINE_multi_string("name", [], "A name.", flag_values=values)
    flags.DEFINE_list("size", ["1", "2"], "A size.", flag_values=values)
    flags.DEFINE_float("rate", 1.0, "A rate.", flag_values=values)
    rest = command.parse_flags(values, argv, ["model"], lambda: "More of it.")
    return {"port": values["port"].value, "model": values["model"].value, "rest": rest}


def test_flags_and_the_other_arguments_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(with_flags, "--port=9", "a.png", "--model", "tiny", "b.png") == 0
    assert json.loads(capsys.readouterr().out) == {"port": 9, "model": "tiny", "rest": ["a.png", "b.png"]}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prot=9"], "prot"),
        (["--port=many"], "--port=many: give a whole number (see --help)"),
        (["--rate=many"], "--rate=many: give a number (see --help)"),
        (["--port=70000"], "70000"),
        (["--port"], "port"),
        (["--flagfile=/no/such/file"], "/no/such/file"),
    ],
)
def test_a_bad_flag_is_code_2_and_one_line_that_names_it(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_with(with_flags, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err
    assert "--help" in err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_flag_with_its_default_on_stdout_and_runs_nothing(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_with(with_flags, flag) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert "  --port: Port to listen on. (default: 8001)" in lines
    assert "  --model: Which model. (required)" in lines
    assert "  --name: A name." in lines  # neither "[]" nor absl's advice
    assert "  --size: A size. (default: 1,2)" in lines
    assert lines[-1] == "More of it."


COMMANDS = (
    "serving.main",
    "serving.client",
    "trainer.main",
    "trainer.export",
    "trainer.evaluate",
    "trainer.compress",
)


@pytest.mark.parametrize("module", COMMANDS)
def test_the_help_of_a_real_command_begins_with_what_it_does_and_how_it_is_typed(module: str) -> None:
    ended = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *rest = ended.stdout.splitlines()
    assert first.endswith(".")
    assert any(f"python -m {module}" in line for line in rest)
    assert "Flags:" in rest


@pytest.mark.parametrize("module", COMMANDS)
def test_a_real_command_refuses_an_unknown_flag_with_code_2_and_one_line(module: str) -> None:
    arguments = [sys.executable, "-m", module, "--no_such_flag=1"]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "flag", "extra", "without"),
    [
        ("serving.main", "--help", "serve", ["grpc_health", "onnxruntime", "PIL"]),
        ("trainer.main", "--help", "train", ["ml_collections", "jax", "flax"]),
        ("tools.quickstart", "--workdir={}", "train,serve", ["PIL", "onnxruntime", "jax"]),
    ],
)
def test_a_command_without_its_packages_says_in_one_line_what_to_install(
    module: str, flag: str, extra: str, without: list[str], tmp_path: Path
) -> None:
    ended = servers.run(module, flag.format(tmp_path), without=without)
    assert (ended.code, ended.lines) == (2, [])
    (line,) = ended.errors.splitlines()
    assert line.startswith("error: this command needs ")
    assert line.endswith(f", not installed here: pip install 'vitforge[{extra}]'")
    assert all(package in line for package in without)


def test_a_module_that_no_installation_brings_is_our_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(failing(ModuleNotFoundError("No module named 'x'", name="x"))) == ExitCode.BUG
    assert "Traceback" in capsys.readouterr().err


def _normalised(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub("[-_.]+", "-", name).lower()


def test_the_extras_hold_what_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = importlib.metadata.packages_distributions()
    for extra, packages in installation.EXTRAS.items():
        declared = {
            _normalised(re.split("[<>=]", line)[0]) for line in project["optional-dependencies"][extra]
        }
        named = {package: {_normalised(name) for name in distributions[package]} for package in packages}
        assert all(names & declared for names in named.values())
        assert all(any(one in names for names in named.values()) for one in declared)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("n" * 300, "a name in it is longer than 255 bytes; give a shorter one"),
        ("/proc/nowhere", "/proc may not be written (No such file or directory); give another folder"),
        ("file/run", "is a file; give a folder"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(says)):
        command.require_folder(tmp_path / path, "--workdir")


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    command.require_folder(tmp_path / "a" / "b", "--workdir")
    assert list(tmp_path.iterdir()) == []


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(command.time, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.delenv("VITFORGE_PROGRESS_EVERY_S", raising=False)
    return Clock(monkeypatch)


def test_progress_in_a_log_is_a_plain_line_now_and_then_and_one_at_the_end(clock: Clock) -> None:
    stream = Stream(terminal=False)
    with command.progress(10, "teacher", stream=stream) as bar:
        for _ in range(10):
            clock.now_s += 1
            bar.advance(note="loss 0.5")
    lines = stream.getvalue().split("\n")
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert [line.split()[2] for line in lines[:-1]] == ["5/10", "10/10"]  # every 5 s, and the last state once
    assert lines[-1] == ""
    assert lines[0].endswith("5/10 1.0/s 5 s left loss 0.5")


def test_progress_on_a_terminal_is_one_line_that_is_drawn_over(clock: Clock) -> None:
    stream = Stream(terminal=True)
    with command.progress(4, "teacher", stream=stream) as bar:
        for _ in range(4):
            clock.now_s += 1
            bar.advance()
    drawn = stream.getvalue()
    assert drawn.count("\r") == 4
    assert drawn.count("\n") == 1
    assert drawn.endswith("\n")


def test_progress_that_resumes_counts_its_speed_from_where_it_started(clock: Clock) -> None:
    stream = Stream(terminal=False)
    with command.progress(100, "student", start=90, stream=stream) as bar:
        bar.advance(1)
        clock.now_s += 5
        bar.advance(5)
    assert "96/100 1.0/s 4 s left" in stream.getvalue()


def test_progress_estimates_nothing_from_the_time_before_its_first_advance(clock: Clock) -> None:
    stream = Stream(terminal=False)
    with command.progress(100, "teacher", stream=stream) as bar:
        clock.now_s += 80  # compiles
        bar.advance(note="loss 2.3")
        clock.now_s += 5
        bar.advance(10)
    assert [line.split("· ")[-1] for line in stream.getvalue().splitlines()] == [
        "1/100 loss 2.3",
        "11/100 2.0/s 44 s left loss 2.3",
    ]


def test_progress_that_is_switched_off_draws_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITFORGE_PROGRESS", "off")
    for terminal in (False, True):
        stream = Stream(terminal)
        with command.progress(2, "teacher", stream=stream) as bar:
            clock.now_s += 80
            bar.advance()
        assert stream.getvalue() == ""


def test_progress_shows_how_far_it_came_when_its_work_fails(clock: Clock) -> None:
    stream = Stream(terminal=False)

    def work() -> None:
        with command.progress(10, "teacher", stream=stream) as bar:
            bar.advance(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "3/10" in stream.getvalue()


@pytest.mark.parametrize("total", [0, 1])
def test_progress_of_nothing_to_do_is_no_error(total: int, clock: Clock) -> None:
    stream = Stream(terminal=False)
    with command.progress(total, "nothing", stream=stream):
        pass
    assert stream.getvalue().startswith("nothing ")


def test_progress_goes_to_stderr_so_that_stdout_keeps_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> dict[str, Any]:
        with command.progress(1, "teacher") as bar:
            bar.advance()
        return {"done": True}

    assert ended_with(main) == 0
    out, err = capsys.readouterr()
    assert out == '{"done": true}\n'
    assert "1/1" in err
