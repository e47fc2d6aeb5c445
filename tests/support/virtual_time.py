"""Time that passes only when nothing is left to do: an event loop and an executor for tests of anything that waits.

`run` drives a coroutine on a loop whose clock jumps to the next timer instead of sleeping. A test of a minute's waiting takes no
time, and the order of events is the same on every machine.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(AssertionError):
    """The coroutine waits for something that can never happen."""


class _JumpingSelector(selectors.DefaultSelector):
    """Answers at once, and moves the loop's clock by the time that it was asked to wait."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Deadlock("nothing is scheduled, and the test still waits")
        if not ready and timeout is not None:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, which starts at 1000 s."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, run on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class VirtualExecutor(Executor):
    """Runs each job on the event loop's thread, `duration_s()` of virtual time after it was handed in."""

    def __init__(self, duration_s: Callable[[], float]) -> None:
        self._duration_s = duration_s

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def finish() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        asyncio.get_running_loop().call_later(self._duration_s(), finish)
        return future
