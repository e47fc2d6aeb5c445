"""Every test here may name the small models of tests/support/published_files.py."""

import pytest

from tests.support import published_files


@pytest.fixture(autouse=True)
def _small_names(monkeypatch: pytest.MonkeyPatch) -> None:
    published_files.register(monkeypatch.setitem)
