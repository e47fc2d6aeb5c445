"""The batcher of one model: a bounded queue in front, a few executors behind, and one rule for when a batch goes.

The rule. A batch goes only when an executor is free: the first one for any batch, each further one while a batch's rows are
queued, so that small requests still find company while the first computes. It then goes as soon as
  - one request alone is queued (there is nobody to wait for), or
  - as many rows are queued as a batch holds, or
  - the oldest request has waited `max_delay_s`, or
  - the batcher drains.
Requests leave in the order they came. A request of more rows than a batch holds travels as several parts and is joined again.

All state belongs to one event loop and is changed only between its awaits, so there are no locks. The model function runs in
threads; what it does there (gather, pad, run, cut) touches no state of the batcher.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from serving.batching import padding
from serving.errors import DeadlineExceeded, Overloaded, ShuttingDown


@dataclass(frozen=True)
class BatchLimits:
    """What a batcher may do.

    Attributes:
      max_batch_size: rows in one batch, at most.
      max_delay_s: how long a request may wait for company while all executors are free.
      max_queue_rows: rows that may wait; what is being computed does not count.
      buckets: batch sizes that the model likes; a batch is padded to the next one. Larger ones than a batch are ignored.
      concurrency: batches computed at the same time, beyond the first only while as many rows as a batch holds are queued.
    """

    max_batch_size: int
    max_delay_s: float
    max_queue_rows: int
    buckets: tuple[int, ...] = ()
    concurrency: int = 1

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.max_queue_rows < 1 or self.concurrency < 1 or self.max_delay_s < 0:
            raise ValueError(f"sizes must be at least 1 and the delay at least 0, got {self}")


@dataclass(frozen=True)
class BatchRecord:
    """One executed batch: its rows without padding, and where its time went."""

    rows: int
    gather_s: float
    run_s: float
    scatter_s: float


@dataclass(frozen=True)
class Answer:
    """The rows that belong to one request, how long it queued, and the batch (its last, if it was split) that computed it."""

    rows: np.ndarray
    queue_s: float
    batch: BatchRecord


@dataclass(eq=False)
class _Part:
    """Rows of one request that travel together: never more than a batch holds."""

    rows: np.ndarray
    arrived_s: float
    deadline_s: float
    answer: asyncio.Future[Answer]
    taken_s: float = field(default=math.nan)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """Answers requests for rows of one model by running it on batches of them."""

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        limits: BatchLimits,
        *,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        """A batcher that is ready at once.

        Args:
          run: the model: a batch (B, …) in, as many rows out. Called in a thread, `limits.concurrency` times at once at most.
          limits: see `BatchLimits`.
          on_batch: told of every executed batch, on the event loop.
          clock: seconds that only grow; deadlines are points on it.
          executor: where `run` is called, closed by `drain`; a thread pool of its own when absent.
        """
        self._run = run
        self._limits = limits
        self._buckets = padding.buckets_within(limits.max_batch_size, limits.buckets)
        self._on_batch = on_batch
        self._clock = clock
        self._pool = executor or ThreadPoolExecutor(limits.concurrency, thread_name_prefix="batch")
        self._queue: deque[_Part] = deque()
        self._queued_rows = 0
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False

    @property
    def limits(self) -> BatchLimits:
        """What this batcher may do."""
        return self._limits

    async def submit(self, rows: np.ndarray, deadline_s: float = math.inf) -> Answer:
        """The model's answer to `rows` (B, …), B at least 1. Cancelling the call takes its rows out of the queue.

        Raises:
          Overloaded: the queue has no room for so many rows.
          DeadlineExceeded: the clock reached `deadline_s` before the answer was there.
          ShuttingDown: the batcher drains.
          Exception: whatever the model raised for these rows, alone in a batch.
        """
        if len(rows) == 0:
            raise ValueError("a request needs at least one row")
        self._admit(len(rows), deadline_s)
        parts = self._enqueue(rows, deadline_s)
        timer = self._expire_later(parts, deadline_s)
        try:
            self._pump()
            answers = [await part.answer for part in parts]
        finally:
            if timer is not None:
                timer.cancel()
            self._withdraw(parts)
        joined = answers[0].rows if len(answers) == 1 else np.concatenate([answer.rows for answer in answers])
        return Answer(joined, answers[-1].queue_s, answers[-1].batch)

    async def drain(self) -> None:
        """Refuses new requests from now on, and returns when those already here are answered."""
        self._draining = True
        self._pump()
        while self._running:
            await asyncio.wait(self._running)
        self._pool.shutdown(wait=False)

    def _admit(self, rows: int, deadline_s: float) -> None:
        if self._draining:
            raise ShuttingDown(
                "the server is shutting down and takes no new requests: try another one, or later"
            )
        if deadline_s <= self._clock():
            raise DeadlineExceeded("the request's deadline had passed before it could be queued")
        if self._queued_rows + rows > self._limits.max_queue_rows:
            raise Overloaded(
                f"the queue is full: {self._queued_rows} rows wait, {rows} more were sent, "
                f"and the limit is {self._limits.max_queue_rows} rows: try again later"
            )

    def _enqueue(self, rows: np.ndarray, deadline_s: float) -> list[_Part]:
        loop, now_s, size = asyncio.get_running_loop(), self._clock(), self._limits.max_batch_size
        pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
        parts = [_Part(piece, now_s, deadline_s, loop.create_future()) for piece in pieces]
        self._queue.extend(parts)
        self._queued_rows += len(rows)
        return parts

    def _expire_later(self, parts: list[_Part], deadline_s: float) -> asyncio.TimerHandle | None:
        if math.isinf(deadline_s):
            return None

        def expire() -> None:
            for part in parts:
                part.fail(DeadlineExceeded("the request's deadline passed before its answer was computed"))

        return asyncio.get_running_loop().call_later(deadline_s - self._clock(), expire)

    def _withdraw(self, parts: list[_Part]) -> None:
        """Forgets `parts`, whatever became of them: out of the queue, and no unread failure left behind."""
        queued = [part for part in parts if math.isnan(part.taken_s)]
        for part in queued:
            self._queue.remove(part)
            self._queued_rows -= len(part.rows)
        for part in parts:
            if not part.answer.cancel() and not part.answer.cancelled():
                part.answer.exception()
        if queued:
            self._pump()

    def _pump(self) -> None:
        """Starts every batch that should go now, and sets the alarm for the one that should go later."""
        while self._queue and self._has_executor():
            wait_s = self._wait_s()
            if wait_s > 0:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._pump)
                return
            parts = self._take()
            if parts:
                self._running.add(asyncio.create_task(self._execute(parts)))

    def _has_executor(self) -> bool:
        """Whether an executor is free for what is queued: beyond the first, while a batch's rows are queued."""
        full = self._queued_rows >= self._limits.max_batch_size
        return not self._running or (full and len(self._running) < self._limits.concurrency)

    def _wait_s(self) -> float:
        """How much longer the oldest request waits for company, given a free executor."""
        if self._draining or len(self._queue) == 1 or self._queued_rows >= self._limits.max_batch_size:
            return 0.0
        return self._queue[0].arrived_s + self._limits.max_delay_s - self._clock()

    def _take(self) -> list[_Part]:
        """The next batch, oldest first. Requests that are answered already (expired, cancelled) are left out of it."""
        now_s, rows = self._clock(), 0
        parts: list[_Part] = []
        while self._queue and rows + len(self._queue[0].rows) <= self._limits.max_batch_size:
            part = self._queue.popleft()
            part.taken_s = now_s
            self._queued_rows -= len(part.rows)
            if part.deadline_s <= now_s:
                part.fail(DeadlineExceeded("the request's deadline passed while it was queued"))
            if not part.answer.done():
                parts.append(part)
                rows += len(part.rows)
        return parts

    async def _execute(self, parts: list[_Part]) -> None:
        try:
            await self._attempt(parts)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._pump()

    async def _attempt(self, parts: list[_Part]) -> None:
        """Computes `parts` together; should that fail, each of them once more alone, so that a bad one fails alone."""
        loop = asyncio.get_running_loop()
        try:
            record, outputs = await loop.run_in_executor(
                self._pool, self._compute, [part.rows for part in parts]
            )
        except Exception as error:
            if len(parts) == 1:
                parts[0].fail(error)
                return
            for part in parts:
                if not part.answer.done():
                    await self._attempt([part])
            return
        self._on_batch(record)
        for part, rows in zip(parts, outputs, strict=True):
            if not part.answer.done():
                part.answer.set_result(Answer(rows, part.taken_s - part.arrived_s, record))

    def _compute(self, parts: list[np.ndarray]) -> tuple[BatchRecord, list[np.ndarray]]:
        """Runs in a thread."""
        sizes = [len(part) for part in parts]
        bucket = padding.bucket_for(sum(sizes), self._buckets)
        began_s = self._clock()
        batch = padding.gather(parts, bucket)
        gathered_s = self._clock()
        outputs = self._run(batch)
        ran_s = self._clock()
        if len(outputs) != bucket:
            raise RuntimeError(f"the model answered {len(outputs)} rows to a batch of {bucket}")
        answers = padding.scatter(outputs, sizes)
        record = BatchRecord(sum(sizes), gathered_s - began_s, ran_s - gathered_s, self._clock() - ran_s)
        return record, answers
