"""One real server for the tests that only ask it things; tests that load or stop a server start their own."""

from collections.abc import Iterator

import pytest

from tests.support import bundles, servers


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.ServerProcess]:
    """A server of `tiny` (versions 1 and 2) and `fragile`, in batches of 8 rows and a queue of 64."""
    repository = tmp_path_factory.mktemp("repository")
    bundles.write_tiny(repository, "tiny", 1)
    bundles.write_tiny(repository, "tiny", 2)
    bundles.write_tiny(repository, "fragile", 1, fragile=True)
    with servers.serving(repository, "--max_batch_size=8", "--max_queue_rows=64") as running:
        yield running
