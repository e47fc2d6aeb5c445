"""An error that says that others are gone ends the process with the code for it; any other stays what it is."""

import subprocess
import sys

import pytest

from serving.command import ExitCode
from tests.support.trainings import ROOT

_LOSES = """
import sys
import jax
from trainer.distributed.peers import ending_without_peers
jax.process_count, jax.process_index = (lambda: int(sys.argv[2])), (lambda: 1)
with ending_without_peers():
    raise jax.errors.JaxRuntimeError(sys.argv[1])
"""


def ended(message: str, processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _LOSES, message, str(processes)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_lost_process_ends_the_others_with_its_code() -> None:
    done = ended("INTERNAL: Gloo all-reduce failed: Connection closed by peer [10.0.0.2]:3021", 2)
    assert done.returncode == ExitCode.LOST_PEER
    assert done.stderr.splitlines()[-1].startswith("error: process 1 of 2 lost another one (INTERNAL: Gloo")


@pytest.mark.parametrize(("message", "processes"), [("INTERNAL: NaN", 2), ("Connection closed by peer", 1)])
def test_other_errors_stay_what_they_are(message: str, processes: int) -> None:
    done = ended(message, processes)
    assert done.returncode == 1
    assert message in done.stderr
    assert "lost another" not in done.stderr
