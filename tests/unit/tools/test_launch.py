"""The launcher's command line: values arrive as typed, and bad input is refused in one line."""

import json

import pytest

from tests.support.launches import launch

ECHO = ["--", "python", "-c", "import json, sys; print(json.dumps({'arguments': sys.argv[1:]}))"]


def test_arguments_with_spaces_quotes_and_substitutions_arrive_as_typed() -> None:
    typed = ["a b", "it's", '"q"', "$(touch x)", "`id`", "*", "--processes=9", "--", "", "ü\n"]
    ended = launch("run", "--backend=local", "--processes=1", *ECHO, *typed)
    assert ended.returncode == 0
    assert json.loads(ended.stdout.splitlines()[-1]) == {"arguments": typed}


def test_a_dry_run_prints_one_quoted_line_per_process_and_starts_nothing() -> None:
    ended = launch(
        "run", "--processes=2", "--devices_per_process=4", "--dry_run", "--", "python", "-c", "exit('$(x) y')"
    )
    *head, first, second, last = ended.stdout.splitlines()
    lines = [first, second]
    assert (ended.returncode, head, last) == (0, ["# processes.sh", "#!/bin/sh"], "wait")
    assert [f"VITFORGE_PROCESS_ID={index}" in line for index, line in enumerate(lines)] == [True, True]
    assert all("JAX_NUM_CPU_DEVICES=4" in line and "'exit('\"'\"'$(x) y'\"'\"')'" in line for line in lines)


def test_variables_given_on_the_command_line_reach_the_processes() -> None:
    ended = launch(
        "run",
        "--env=NAME=a=b c",
        "--",
        "python",
        "-c",
        "import os; print('{\"name\": \"%s\"}' % os.environ['NAME'])",
    )
    assert ended.stdout == '{"name": "a=b c"}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--backend=cloud", *ECHO],
            "--backend=cloud: no such back end; there are local, ssh, slurm, tpu_vm, jobset",
        ),
        (["run", "--processes=0", *ECHO], "--processes=0: at least 1"),
        (["run", "--devices_per_process=-1", *ECHO], "--devices_per_process=-1: at least 1"),
        (["run", "--processes=two", *ECHO], "--processes"),
        (["run", "--timeout_s=0", *ECHO], "--timeout_s=0.0"),
        (["run", "--env=NAME", *ECHO], "--env=NAME: NAME=VALUE"),
        (["run", "--procesess=2", *ECHO], "procesess"),
        (["run"], "no command to run"),
        (["run", "--"], "no command to run"),
        (["run", "python", "train.py"], "unexpected argument 'python': put -- before the command to run"),
        (
            ["run", "--processes=2", "python", "-m", "trainer.main", "--workdir=x"],
            "unexpected argument 'python': put -- before the command to run",
        ),
        (["run", "--", "no-such-program"], "'no-such-program' is no program"),
        (
            ["run", "--name=x", "--records=/dev/null/x", *ECHO],
            "/dev/null/x/x: Not a directory; give --records",
        ),
        (["walk"], "no such verb: 'walk'"),
        ([], "say what to do"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    ended = launch(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_help_names_the_verbs_and_the_flags_of_every_back_end() -> None:
    ended = launch("--help")
    assert ended.returncode == 0
    for verb in ("run", "render", "status", "logs", "stop", "doctor"):
        assert f"\n  {verb} " in ended.stdout
    assert "--hosts: (ssh) hosts by their names" in ended.stdout
    assert "--spot: (tpu_vm, jobset) take spot capacity" in ended.stdout
    assert "may be given again.\n" in ended.stdout
