"""The batcher: when a batch goes, what it holds, and that every row finds its caller. All on virtual time."""

import asyncio
import math
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from serving.batching import Answer, Batcher, BatchLimits, BatchRecord, padding
from serving.errors import DeadlineExceeded, Overloaded, ShuttingDown
from tests.support import virtual_time

# Virtual clocks are sums of floats: two ways to reach the same moment differ by rounding, far below a nanosecond.
SAME_MOMENT_S = 1e-9


class PoisonError(Exception):
    """What the model of these tests raises for a negative row."""


@dataclass
class Model:
    """Answers 2x + 1, refuses negative rows, and remembers each batch that it was given."""

    batches: list[list[float]] = field(default_factory=list)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(batch[:, 0].tolist())
        if (batch < 0).any():
            raise PoisonError(batch[batch < 0].tolist())
        return 2 * batch + 1


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1)


def batcher_of(
    model: Callable[[np.ndarray], np.ndarray],
    *,
    compute_s: Callable[[], float] = lambda: 1.0,
    on_batch: Callable[[BatchRecord], None] = lambda record: None,
    max_batch_size: int = 4,
    max_delay_s: float = 0.1,
    max_queue_rows: int = 100,
    buckets: tuple[int, ...] = (),
    concurrency: int = 1,
) -> Batcher:
    limits = BatchLimits(max_batch_size, max_delay_s, max_queue_rows, buckets, concurrency)
    executor = virtual_time.VirtualExecutor(compute_s)
    clock = asyncio.get_running_loop().time
    return Batcher(model, limits, executor=executor, clock=clock, on_batch=on_batch)


async def started(*requests: "asyncio.Task[Answer]") -> None:
    """Returns when the tasks have run up to their first wait."""
    await asyncio.sleep(0)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_lone_request_on_an_idle_executor_does_not_wait() -> None:
    async def scenario() -> None:
        began_s = now_s()
        answer = await batcher_of(Model(), max_delay_s=5.0).submit(rows(1, 2))
        assert answer.rows.tolist() == [[3], [5]]
        assert answer.queue_s == 0
        assert now_s() - began_s == pytest.approx(1.0)

    virtual_time.run(scenario())


def test_requests_that_queue_behind_a_busy_executor_share_a_batch() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model)
        await asyncio.gather(*(batcher.submit(rows(value)) for value in range(6)))
        assert model.batches == [[0], [1, 2, 3, 4], [5]]

    virtual_time.run(scenario())


def test_a_free_executor_waits_for_company_until_the_oldest_is_max_delay_old() -> None:
    async def scenario() -> None:
        model, began_s = Model(), now_s()
        batcher = batcher_of(model, compute_s=lambda: 1.0, max_delay_s=0.3)
        first = asyncio.create_task(batcher.submit(rows(0)))
        await asyncio.sleep(0.9)
        pair = [asyncio.create_task(batcher.submit(rows(value))) for value in (1, 2)]
        await first
        await asyncio.sleep(0.1)
        assert len(model.batches) == 1
        answers = await asyncio.gather(*pair)
        assert [answer.queue_s for answer in answers] == pytest.approx([0.3, 0.3])
        assert now_s() - began_s == pytest.approx(0.9 + 0.3 + 1.0)

    virtual_time.run(scenario())


def test_a_second_executor_takes_a_full_batch_and_leaves_less_to_gather() -> None:
    async def scenario() -> None:
        model, began_s = Model(), now_s()
        batcher = batcher_of(model, concurrency=2)
        first = [asyncio.create_task(batcher.submit(rows(value))) for value in range(3)]
        await asyncio.sleep(0.5)
        second = [asyncio.create_task(batcher.submit(rows(value))) for value in (3, 4, 5)]
        answers = await asyncio.gather(*first, *second)
        assert model.batches == [[0], [1, 2, 3, 4], [5]]
        assert [answer.queue_s for answer in answers] == pytest.approx([0, 0.5, 0.5, 0, 0, 1.0])
        assert now_s() - began_s == pytest.approx(2.5)

    virtual_time.run(scenario())


def test_a_batch_that_fills_while_it_waits_goes_at_once() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, max_delay_s=50.0)
        first = asyncio.create_task(batcher.submit(rows(0)))
        await started(first)
        waiting = [asyncio.create_task(batcher.submit(rows(value))) for value in (1, 2, 3)]
        await first
        await asyncio.sleep(1.0)
        last = await batcher.submit(rows(4))
        assert last.queue_s == 0
        await asyncio.gather(*waiting)
        assert model.batches == [[0], [1, 2, 3, 4]]

    virtual_time.run(scenario())


def test_a_request_larger_than_a_batch_is_split_and_joined_in_order() -> None:
    async def scenario() -> None:
        model = Model()
        answer = await batcher_of(model).submit(rows(*range(10)))
        assert answer.rows[:, 0].tolist() == [2 * value + 1 for value in range(10)]
        assert [len(batch) for batch in model.batches] == [4, 4, 2]

    virtual_time.run(scenario())


def test_padding_rows_never_reach_the_caller() -> None:
    async def scenario() -> None:
        model, records = Model(), list[BatchRecord]()
        batcher = batcher_of(model, buckets=(1, 2, 4, 64), max_batch_size=6, on_batch=records.append)
        answer = await batcher.submit(rows(7, 8, 9))
        assert model.batches == [[7, 8, 9, 0]]
        assert answer.rows.tolist() == [[15], [17], [19]]
        assert records[0].rows == 3
        await batcher.submit(rows(*range(5)))
        assert len(model.batches[-1]) == 6, "above the largest fitting bucket, the batch limit is the bucket"

    virtual_time.run(scenario())


def test_a_full_queue_refuses_and_names_its_limit() -> None:
    async def scenario() -> None:
        batcher = batcher_of(Model(), max_queue_rows=5)
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        waiting = asyncio.create_task(batcher.submit(rows(1, 2, 3)))
        await started(waiting)
        with pytest.raises(Overloaded, match="3 rows wait, 3 more were sent, and the limit is 5 rows"):
            await batcher.submit(rows(4, 5, 6))
        assert len((await batcher.submit(rows(4, 5))).rows) == 2
        await asyncio.gather(busy, waiting)

    virtual_time.run(scenario())


def test_a_request_is_answered_at_its_deadline_and_never_computed_after_it() -> None:
    async def scenario() -> None:
        model, began_s = Model(), now_s()
        batcher = batcher_of(model)
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows(1), deadline_s=began_s + 0.4)
        assert now_s() - began_s == pytest.approx(0.4)
        await busy
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows(2), deadline_s=began_s)
        assert model.batches == [[0]]

    virtual_time.run(scenario())


def test_a_request_that_expires_while_computed_is_answered_at_its_deadline() -> None:
    async def scenario() -> None:
        began_s = now_s()
        with pytest.raises(DeadlineExceeded):
            await batcher_of(Model(), compute_s=lambda: 9.0).submit(rows(1), deadline_s=began_s + 0.5)
        assert now_s() - began_s == pytest.approx(0.5)

    virtual_time.run(scenario())


def test_a_cancelled_request_leaves_the_queue_and_its_room_at_once() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, max_queue_rows=2)
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        waiting = asyncio.create_task(batcher.submit(rows(1, 2)))
        await started(waiting)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len((await batcher.submit(rows(3, 4))).rows) == 2
        await busy
        assert model.batches == [[0], [3, 4]]

    virtual_time.run(scenario())


def test_cancelling_one_request_of_a_running_batch_leaves_the_others_their_rows() -> None:
    async def scenario() -> None:
        batcher = batcher_of(Model())
        tasks = [asyncio.create_task(batcher.submit(rows(value))) for value in range(4)]
        await tasks[0]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        assert (await tasks[1]).rows.tolist() == [[3]]
        assert (await tasks[3]).rows.tolist() == [[7]]

    virtual_time.run(scenario())


def test_one_bad_request_fails_alone() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model)
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        results = await asyncio.gather(*(batcher.submit(rows(v)) for v in (1, -2, 3)), return_exceptions=True)
        assert isinstance(results[1], PoisonError)
        assert [result.rows.tolist() for result in results if isinstance(result, Answer)] == [[[3]], [[7]]]
        assert model.batches == [[0], [1, -2, 3], [1], [-2], [3]]
        await busy

    virtual_time.run(scenario())


def test_a_request_cancelled_while_its_batch_fails_is_not_tried_again() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model)
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        tasks = [asyncio.create_task(batcher.submit(rows(value))) for value in (1, -2)]
        await busy
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        with pytest.raises(PoisonError):
            await tasks[1]
        assert model.batches == [[0], [1, -2], [-2]]

    virtual_time.run(scenario())


def test_the_last_request_left_waiting_goes_when_its_company_is_cancelled() -> None:
    async def scenario() -> None:
        began_s = now_s()
        batcher = batcher_of(Model(), max_delay_s=50.0)
        tasks = [asyncio.create_task(batcher.submit(rows(value))) for value in range(3)]
        await tasks[0]
        await asyncio.sleep(1.0)
        tasks[1].cancel()
        await tasks[2]
        assert now_s() - began_s == pytest.approx(1.0 + 1.0 + 1.0)

    virtual_time.run(scenario())


def test_an_event_loop_that_was_held_up_still_computes_nothing_late() -> None:
    async def scenario() -> None:
        model, late_s = Model(), [0.0]
        loop = asyncio.get_running_loop()
        executor = virtual_time.VirtualExecutor(lambda: 1.0)
        batcher = Batcher(
            model, BatchLimits(4, 0.1, 10), executor=executor, clock=lambda: loop.time() + late_s[0]
        )
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        waiting = asyncio.create_task(batcher.submit(rows(1), deadline_s=now_s() + 5.0))
        await started(waiting)
        late_s[0] = 10.0  # the clock is past the deadline, and no timer has had its turn yet
        with pytest.raises(DeadlineExceeded):
            await waiting
        await busy
        assert model.batches == [[0]]

    virtual_time.run(scenario())


def test_requests_of_different_shapes_are_computed_apart() -> None:
    async def scenario() -> None:
        batcher = batcher_of(lambda batch: batch.sum(axis=tuple(range(1, batch.ndim)))[:, None])
        busy = asyncio.create_task(batcher.submit(rows(0)))
        await started(busy)
        odd = asyncio.create_task(batcher.submit(np.ones((1, 2, 3), np.float32)))
        even = asyncio.create_task(batcher.submit(rows(5)))
        assert (await even).rows.tolist() == [[5]]
        assert (await odd).rows.tolist() == [[6]]
        await busy

    virtual_time.run(scenario())


def test_a_model_that_answers_too_few_rows_is_an_error_not_a_mix_up() -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="answered 1 rows to a batch of 2"):
            await batcher_of(lambda batch: batch[:1]).submit(rows(1, 2))

    virtual_time.run(scenario())


def test_draining_answers_everybody_and_refuses_newcomers() -> None:
    async def scenario() -> None:
        batcher = batcher_of(Model(), max_delay_s=1e6)
        tasks = [asyncio.create_task(batcher.submit(rows(value))) for value in range(3)]
        await started(*tasks)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await batcher.submit(rows(9))
        await draining
        assert [task.result().rows.tolist() for task in tasks] == [[[1]], [[3]], [[5]]]

    virtual_time.run(scenario())


def test_a_batcher_runs_its_model_in_a_thread_and_leaves_the_loop_free() -> None:
    async def scenario() -> None:
        ticked = asyncio.Event()
        loop = asyncio.get_running_loop()

        def model(batch: np.ndarray) -> np.ndarray:
            # Ends only when the loop, meanwhile, does something else.
            asyncio.run_coroutine_threadsafe(ticked.wait(), loop).result(timeout=30)
            return batch

        batcher = Batcher(model, BatchLimits(4, 0.0, 10))
        call = asyncio.create_task(batcher.submit(rows(1)))
        await started(call)
        ticked.set()
        assert (await call).rows.tolist() == [[1]]
        await batcher.drain()

    asyncio.run(scenario())


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchLimits(0, 0.0, 1)


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (3, 4), (4, 4), (5, 8), (9, 9)])
def test_a_batch_is_padded_to_the_next_bucket(count: int, bucket: int) -> None:
    assert padding.bucket_for(count, (8, 1, 4)) == bucket


# --- Random traces -------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """What one caller of a trace does, and what became of it."""

    ids: list[float]
    arrives_s: float
    deadline_s: float
    cancels_after_s: float
    outcome: object = None
    ended_s: float = math.nan

    @property
    def poisoned(self) -> bool:
        return min(self.ids) < 0


@dataclass
class Trace:
    """A random run of a batcher: its limits, its requests, and the batches that it started and finished."""

    limits: BatchLimits
    requests: list[Request]
    # When, its rows, and how many ran already.
    started: list[tuple[float, list[float], int]] = field(default_factory=list)
    finished_s: list[float] = field(default_factory=list)
    most_at_once: int = 0


class RecordingExecutor(virtual_time.VirtualExecutor):
    """Notes when each batch starts and ends, and which rows it holds."""

    def __init__(self, trace: Trace, rng: random.Random) -> None:
        super().__init__(lambda: rng.choice([0.01, 0.05, 0.2]))
        self._trace = trace
        self._at_once = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        (parts,) = args
        self._trace.started.append((now_s(), np.concatenate(parts)[:, 0].tolist(), self._at_once))
        self._at_once += 1
        self._trace.most_at_once = max(self._trace.most_at_once, self._at_once)
        future = super().submit(function, *args, **kwargs)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: object) -> None:
        self._at_once -= 1
        self._trace.finished_s.append(now_s())


def random_trace(rng: random.Random) -> Trace:
    size = rng.randint(1, 8)
    buckets = tuple(sorted(rng.sample(range(1, 12), rng.randint(0, 4))))
    limits = BatchLimits(
        size, rng.choice([0.0, 0.02, 0.1]), rng.choice([10, 30, 1000]), buckets, rng.randint(1, 3)
    )
    requests, next_id, at_s = [], 1, 1000.0
    for _ in range(rng.randint(5, 40)):
        at_s += rng.choice([0.0, 0.0, 0.001, 0.03, 0.3])
        ids = [float(next_id + offset) for offset in range(rng.randint(1, 2 * size))]
        next_id += len(ids)
        if rng.random() < 0.1:
            ids[rng.randrange(len(ids))] *= -1
        deadline_s = at_s + rng.choice([0.015, 0.1, 0.4]) if rng.random() < 0.3 else math.inf
        cancels_after_s = rng.choice([0.0, 0.02, 0.2]) if rng.random() < 0.15 else math.inf
        requests.append(Request(ids, at_s, deadline_s, cancels_after_s))
    return Trace(limits, requests)


async def play(trace: Trace, rng: random.Random) -> Model:
    model = Model()
    executor = RecordingExecutor(trace, rng)
    batcher = Batcher(model, trace.limits, executor=executor, clock=asyncio.get_running_loop().time)

    async def caller(request: Request) -> None:
        call = asyncio.create_task(batcher.submit(rows(*request.ids), request.deadline_s))
        if request.cancels_after_s < math.inf:
            asyncio.get_running_loop().call_later(request.cancels_after_s, call.cancel)
        (request.outcome,) = await asyncio.gather(call, return_exceptions=True)
        request.ended_s = now_s()

    async with asyncio.TaskGroup() as callers:
        for request in trace.requests:
            await asyncio.sleep(request.arrives_s - now_s())
            callers.create_task(caller(request))
    await batcher.drain()
    return model


def check_outcome(request: Request, limits: BatchLimits) -> None:
    match request.outcome:
        case Answer(rows=answered):
            assert answered[:, 0].tolist() == [2 * value + 1 for value in request.ids]
            assert request.ended_s <= request.deadline_s + SAME_MOMENT_S
        case PoisonError():
            assert request.poisoned, "only a request with a bad row may fail"
        case DeadlineExceeded():
            assert request.ended_s == pytest.approx(request.deadline_s, abs=SAME_MOMENT_S)
        case asyncio.CancelledError():
            assert request.cancels_after_s < math.inf
        case Overloaded():
            assert request.ended_s == pytest.approx(request.arrives_s, abs=SAME_MOMENT_S)
            assert limits.max_queue_rows < 1000
        case other:
            pytest.fail(f"{request} was answered {other!r}")


def check_batches(trace: Trace, model: Model) -> None:
    limits = trace.limits
    of_row = {row: request for request in trace.requests for row in request.ids}
    seen: dict[float, int] = {}
    last_first_seen = 0.0
    for started_s, ids, beside in trace.started:
        assert len(ids) <= limits.max_batch_size
        retried = ids[0] in seen
        for row in ids:
            seen[row] = seen.get(row, 0) + 1
            assert (seen[row] == 2) == retried, "a row is computed once, and once more when its batch failed"
        if retried:
            assert len({id(of_row[row]) for row in ids}) == 1, "a retry holds the rows of one request"
            continue
        assert [abs(row) for row in ids] == sorted(abs(row) for row in ids)
        assert abs(ids[0]) > last_first_seen, "requests are served in the order they came"
        last_first_seen = abs(ids[-1])
        assert all(started_s < of_row[row].deadline_s for row in ids)
        waited_s = started_s - of_row[ids[0]].arrives_s
        freed_now = any(abs(started_s - end_s) <= SAME_MOMENT_S for end_s in trace.finished_s)
        assert beside or freed_now or waited_s <= limits.max_delay_s + SAME_MOMENT_S, (
            "no rows wait beyond the delay when all executors idle"
        )
    assert trace.most_at_once <= limits.concurrency
    allowed = {bucket for bucket in limits.buckets if bucket <= limits.max_batch_size} | {
        limits.max_batch_size
    }
    assert not limits.buckets or all(len(batch) in allowed for batch in model.batches)


@pytest.mark.parametrize("block", range(10))
def test_random_traces_answer_each_request_once_rightly_in_order_and_in_time(block: int) -> None:
    for seed in range(30 * block, 30 * block + 30):
        rng = random.Random(seed)
        trace = random_trace(rng)
        model = virtual_time.run(play(trace, rng))
        for request in trace.requests:
            check_outcome(request, trace.limits)
        check_batches(trace, model)
