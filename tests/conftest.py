"""Settings that hold for every test; nothing here imports jax, so that tests of serving run without it.

What several rooms' tests share lies in tests/support, as ordinary modules.
"""

import os

# Tests ask nothing of an accelerator, and must not take one from somebody who trains on this machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
