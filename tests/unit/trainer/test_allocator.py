"""A step takes no new pages from the kernel for what the step before gave back."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.trainings import ROOT

# Each call of `grown` makes and frees 64 MiB, 16,384 pages. What it frees is free a little later, on another thread: some calls
# pass until so many blocks are there as live at a time.
_STEPS = """
import resource, sys
from trainer.allocator import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
import jax, jax.numpy as jnp
grown = jax.jit(lambda x: jnp.outer(x, x))
x = jnp.ones(4096)
for _ in range(60):
    grown(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
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


def _has_small_pages_and_glibc() -> bool:
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.is_file() and "[always]" in huge.read_text():
        return False
    return platform.libc_ver()[0] == "glibc" and os.sysconf("SC_PAGE_SIZE") == 4096


@pytest.mark.skipif(
    not _has_small_pages_and_glibc(), reason="pages are counted, of 4 KiB, and mallopt is glibc's"
)
def test_what_a_step_frees_the_next_one_has() -> None:
    _, given_back = pages("given back")
    assert given_back > 20 * 15_000
    kept, count = pages("kept")
    assert kept
    assert count < given_back / 4
