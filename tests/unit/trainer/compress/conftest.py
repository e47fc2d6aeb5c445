from pathlib import Path

import pytest

from tests.support.small_models import save_digits


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of SMALL, which no test changes."""
    path = tmp_path_factory.mktemp("teacher")
    save_digits(path)
    return path
