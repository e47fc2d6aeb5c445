"""Settings that hold for every test, and for the processes that tests start; nothing here imports jax, so that tests of
serving run without it.

What several rooms' tests share lies in tests/support, as ordinary modules.
"""

import os
from pathlib import Path

from tools.steps import compiling_once

# Tests ask nothing of an accelerator, and must not take one from somebody who trains on this machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of a test's time goes into compiling, and what it compiles runs once, on tiny models: LLVM makes no effort, and what
# was compiled for one test or process serves the next. A folder for each worker: JAX writes into it without a lock.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
_COMPILED = (
    Path(__file__).parents[1] / ".pytest_cache/compiled" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ.update(compiling_once(str(_COMPILED)))
