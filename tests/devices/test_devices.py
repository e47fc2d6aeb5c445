"""The ground that the tests of this folder stand on."""

import jax


def test_eight_devices_are_there() -> None:
    assert jax.device_count() == 8
