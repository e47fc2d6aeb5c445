"""Lets this process keep the memory that it frees: a training step on a CPU asks for the same hundreds of MiB again and again.

The C library gives large blocks back to the kernel at once, and the kernel fills each page with zeros when it is touched again:
a fifth of a step's time (measured: README, "What the trainer costs beside its step"). Accelerators have allocators of their own.
"""

import ctypes
import os
from importlib.util import find_spec

# mallopt(3), glibc's numbers: nothing by mmap, nothing given back, one heap (others cannot hold large blocks).
_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Call before JAX starts threads, whose heaps are made with them. Does nothing beside an accelerator, or without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or _beside_an_accelerator():
        return False
    return all(mallopt(number, value) == 1 for number, value in _OPTIONS.values())


def _beside_an_accelerator() -> bool:
    """Whether JAX would compute on one: its plugins are installed where one is meant to be used."""
    if os.environ.get("JAX_PLATFORMS"):
        return os.environ["JAX_PLATFORMS"] != "cpu"
    return any(find_spec(name) is not None for name in ("libtpu", "jax_plugins"))
