"""What one model has done since it was loaded: the numbers that the ModelStatistics call reports.

Every figure is a pair (how often, how long in total), as perf_analyzer and the dashboards of the field expect: they take two
snapshots and divide the differences. Kept on the event loop, so there are no locks; knows neither gRPC nor a protobuf.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.batching import Answer, BatchRecord


@dataclass
class Tally:
    """How often something happened and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Counts one more occurrence of `seconds`."""
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass
class BatchTally:
    """The executions of one batch size (rows without padding)."""

    compute_input: Tally = field(default_factory=Tally)
    compute_infer: Tally = field(default_factory=Tally)
    compute_output: Tally = field(default_factory=Tally)


class ModelTelemetry:
    """Counts the requests and batches of one model.

    Attributes:
      success, fail: requests and their time from arrival to answer.
      queue, compute_input, compute_infer, compute_output: where the time of the successful ones went.
      inference_count: rows answered; execution_count: batches run for them.
      batches: by batch size.
      last_inference_ms: when the last request was answered, in milliseconds since 1970; 0 before the first.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self.success, self.fail, self.queue = Tally(), Tally(), Tally()
        self.compute_input, self.compute_infer, self.compute_output = Tally(), Tally(), Tally()
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        self.batches: dict[int, BatchTally] = {}

    def batch_ran(self, record: BatchRecord) -> None:
        """Counts one executed batch."""
        self.execution_count += 1
        batch = self.batches.setdefault(record.rows, BatchTally())
        batch.compute_input.add(record.gather_s)
        batch.compute_infer.add(record.run_s)
        batch.compute_output.add(record.scatter_s)

    def request_succeeded(self, answer: Answer, total_s: float) -> None:
        """Counts one answered request that took `total_s` from arrival to answer."""
        self.inference_count += len(answer.rows)
        self.last_inference_ms = round(self._wall_clock() * 1e3)
        self.success.add(total_s)
        self.queue.add(answer.queue_s)
        self.compute_input.add(answer.batch.gather_s)
        self.compute_infer.add(answer.batch.run_s)
        self.compute_output.add(answer.batch.scatter_s)

    def request_failed(self, total_s: float) -> None:
        """Counts one request that was refused or failed after `total_s`."""
        self.fail.add(total_s)
