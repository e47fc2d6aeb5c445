"""Eight virtual CPU devices, for the laws of meshes and shardings.

JAX counts its devices once per process, so these tests get a process of their own (`make test-devices`, or pytest on this
folder). In a run together with other tests, which want one device, they are skipped and the reason is shown.
"""

import os
from pathlib import Path

import pytest

DEVICES = 8
_ALONE = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    here = Path(__file__).parent
    targets = [
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
    ]
    config.stash[_ALONE] = all(target.is_relative_to(here) for target in targets)
    if config.stash[_ALONE]:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(DEVICES)  # read when jax is imported


@pytest.fixture(autouse=True, scope="session")
def eight_devices(request: pytest.FixtureRequest) -> None:
    """Holds back every test here unless the process really has eight devices."""
    import jax

    if jax.device_count() == DEVICES:
        return
    if request.config.stash[_ALONE]:
        pytest.fail(f"JAX shows {jax.device_count()} devices instead of {DEVICES}: it was imported too early")
    pytest.skip("needs eight devices, so a process of its own: make test-devices")
