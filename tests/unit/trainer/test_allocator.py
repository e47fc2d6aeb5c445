"""A step takes no new pages from the kernel for what the step before gave back."""

import os
import subprocess
import sys

import pytest

from tests.support.trainings import ROOT

# Each call of `grown` makes and frees 64 MiB, 16,384 pages.
_STEPS = """
import resource, sys
from trainer.allocator import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
import jax, jax.numpy as jnp
grown = jax.jit(lambda x: jnp.outer(x, x))
x = jnp.ones(4096)
for _ in range(3):
    grown(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    grown(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str, **environment: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, how],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_what_a_step_frees_the_next_one_has() -> None:
    assert pages("given back") > (False, 10 * 10_000)
    kept, count = pages("kept")
    assert kept
    assert count < 10_000
