"""What a server does at its start, in this process."""

import asyncio
import math
import time
from pathlib import Path

import pytest

from serving.runtime.base import Array
from serving.service import server as module
from serving.service.server import Server, ServerOptions
from tests.support import bundles


class Recording:
    """A runtime that answers like a tiny model and remembers the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(inputs["images"]))
        return {"logits": bundles.logits(inputs["images"])}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("max_batch_size", [3, 6, 8, 11])
def test_no_caller_waits_for_the_first_run_of_a_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_batch_size: int
) -> None:
    bundles.write_tiny(tmp_path)
    runtime = Recording()
    monkeypatch.setattr(module, "open_runtime", lambda *_: runtime)

    async def scenario() -> None:
        options = ServerOptions(tmp_path, "127.0.0.1", 0, max_batch_size=max_batch_size)
        running = await Server.start(options)
        warmed = set(runtime.sizes)
        [model] = running.models
        for rows in range(1, max_batch_size + 1):
            await model.answer(bundles.images(rows), math.inf, time.monotonic())
        await running.stop(drain_s=0)
        assert set(runtime.sizes) == warmed
        assert max(warmed) == max_batch_size

    asyncio.run(scenario())
