"""The statistics of a model: counts of requests and batches, and where their time went."""

import numpy as np

from serving.batching import Answer, BatchRecord
from serving.telemetry import ModelTelemetry, Tally


def record(rows: int) -> BatchRecord:
    return BatchRecord(rows, gather_s=0.001, run_s=0.02, scatter_s=0.0003)


def answer(rows: int) -> Answer:
    return Answer(np.zeros((rows, 2)), queue_s=0.005, batch=record(4))


def test_a_model_that_did_nothing_reports_zeros() -> None:
    telemetry = ModelTelemetry()
    assert (telemetry.success, telemetry.fail, telemetry.queue) == (Tally(), Tally(), Tally())
    assert (telemetry.inference_count, telemetry.execution_count, telemetry.last_inference_ms) == (0, 0, 0)


def test_answers_count_rows_and_their_time_in_nanoseconds() -> None:
    telemetry = ModelTelemetry(wall_clock=lambda: 1700.5)
    telemetry.request_succeeded(answer(3), total_s=0.03)
    telemetry.request_succeeded(answer(1), total_s=0.01)
    assert telemetry.inference_count == 4
    assert telemetry.success == Tally(2, 40_000_000)
    assert telemetry.queue == Tally(2, 10_000_000)
    assert telemetry.compute_input == Tally(2, 2_000_000)
    assert telemetry.compute_infer == Tally(2, 40_000_000)
    assert telemetry.compute_output == Tally(2, 600_000)
    assert telemetry.last_inference_ms == 1_700_500


def test_failures_count_apart_and_leave_the_rest_alone() -> None:
    telemetry = ModelTelemetry()
    telemetry.request_failed(0.002)
    assert telemetry.fail == Tally(1, 2_000_000)
    assert telemetry.success == Tally()
    assert telemetry.last_inference_ms == 0


def test_batches_count_by_their_size_without_padding() -> None:
    telemetry = ModelTelemetry()
    for rows in (3, 3, 8):
        telemetry.batch_ran(record(rows))
    assert telemetry.execution_count == 3
    assert sorted(telemetry.batches) == [3, 8]
    assert telemetry.batches[3].compute_infer == Tally(2, 40_000_000)
