"""Queue, deadlines and shutdown of a real server with a model slow enough that requests meet."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.client import ClientError, Unavailable, VisionClient
from tests.support import bundles, servers

# Products in the slow model: a batch takes some 0.1 s on a fast machine, far longer than sending a dozen requests.
SLOW_STEPS = 1500


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow")
    bundles.write_tiny(path, "slow", slow_steps=SLOW_STEPS)
    return path


@pytest.fixture(scope="module")
def narrow(repository: Path) -> Iterator[servers.ServerProcess]:
    """Computes one row at a time and lets two wait."""
    with servers.serving(repository, "--executors=1", "--max_batch_size=1", "--max_queue_rows=2") as running:
        yield running


def slow_request(timeout_us: int = 0) -> service_pb2.ModelInferRequest:
    images = bundles.images(1)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="images", datatype="FP32", shape=images.shape
    )
    request = service_pb2.ModelInferRequest(
        model_name="slow", inputs=[tensor], raw_input_contents=[images.tobytes()]
    )
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return request


def wait_until_computing(target: str) -> None:
    """Returns when a call is being worked on; asks the server, which answers while it computes."""
    with triton.InferenceServerClient(target) as client:
        while not client.get_inference_statistics("slow").model_stats[0].execution_count:
            pass


@pytest.mark.parametrize(
    ("options", "count"), [(["--executors=3"], 3), (["--threads=1"], 1), (["--threads=2"], 2)]
)
def test_the_configuration_says_how_many_batches_are_computed_at_the_same_time(
    options: list[str], count: int, repository: Path
) -> None:
    with (
        servers.serving(repository, *options) as server,
        triton.InferenceServerClient(server.target) as client,
    ):
        [group] = client.get_model_config("slow").config.instance_group
    assert (group.count, group.kind) == (count, group.KIND_CPU)


def test_a_full_queue_is_resource_exhausted_and_the_rest_is_answered(narrow: servers.ServerProcess) -> None:
    with grpc.insecure_channel(narrow.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(slow_request()) for _ in range(12)]
        codes = [call.code() for call in calls]
        refusals = [call.details() for call in calls if call.code() is not grpc.StatusCode.OK]
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) >= 3, "one is computed and two wait"
    assert all("the limit is 2 rows" in details for details in refusals)


def test_the_timeout_parameter_shortens_the_deadline(narrow: servers.ServerProcess) -> None:
    with grpc.insecure_channel(narrow.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as late:
            stub.ModelInfer(slow_request(timeout_us=5_000))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "before its answer was computed" in late.value.details()


def test_a_call_whose_grpc_deadline_passes_counts_as_failed_and_its_rows_are_not_answered(
    narrow: servers.ServerProcess,
) -> None:
    with triton.InferenceServerClient(narrow.target) as client:
        before = client.get_inference_statistics("slow").model_stats[0]
        with grpc.insecure_channel(narrow.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as late:
                stub.ModelInfer(slow_request(), timeout=0.01)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answers_again(narrow.target)
        after = client.get_inference_statistics("slow").model_stats[0]
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_count - before.inference_count == 1, "only the call of answers_again"


def answers_again(target: str) -> bool:
    """Whether one patient call succeeds; by then the one before it has left the server."""
    with grpc.insecure_channel(target) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(slow_request())
    return bool(response.raw_output_contents)


def test_more_images_than_may_ever_queue_are_refused_for_good(narrow: servers.ServerProcess) -> None:
    with (
        VisionClient(narrow.target) as client,
        pytest.raises(ClientError, match="takes 1 to 2 images, got 3"),
    ):
        client.classify([bundles.png()] * 3, "slow")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_calls_under_way_finish_and_refuses_new_ones(
    repository: Path, number: signal.Signals
) -> None:
    with (
        servers.serving(repository, "--max_batch_size=2") as server,
        VisionClient(server.target, timeout_s=servers.PATIENCE_S) as client,
        grpc.insecure_channel(server.target) as channel,
        ThreadPoolExecutor(1) as threads,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        # Twelve images are six slow batches: the signal comes after the first.
        under_way = threads.submit(client.classify, [bundles.png(seed=seed) for seed in range(12)], "slow")
        wait_until_computing(server.target)
        server.ask_to_stop(number)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not client.ready()
        with pytest.raises(Unavailable, match="shutting down"):
            client.classify([bundles.png()], "slow")
        assert len(under_way.result()) == 12
        ended = server.wait()
    assert ended.code == 0
    assert ended.result == {"event": "stopped", "answered": 1}


def test_a_signal_under_load_fails_no_call_except_as_unavailable(repository: Path) -> None:
    answered, failures, lock = [0], list[ClientError](), threading.Lock()

    def keep_calling(target: str) -> None:
        with VisionClient(target, timeout_s=servers.PATIENCE_S) as client:
            while True:
                try:
                    client.infer("slow", bundles.images(1))
                except ClientError as error:
                    failures.append(error)
                    return
                with lock:
                    answered[0] += 1

    with servers.serving(repository, "--max_batch_size=4") as server, ThreadPoolExecutor(8) as threads:
        callers = [threads.submit(keep_calling, server.target) for _ in range(8)]
        wait_until_computing(server.target)
        server.ask_to_stop()
        for caller in callers:
            caller.result()
        ended = server.wait()
    assert ended.code == 0
    assert [type(error) for error in failures] == [Unavailable] * 8, failures
    assert all("shutting down" in str(error) for error in failures), failures
    assert ended.result["answered"] == answered[0], "every answer that was computed reached its caller"


def test_a_drain_that_takes_too_long_is_cut_and_the_log_says_so(repository: Path) -> None:
    with (
        servers.serving(repository, "--max_batch_size=1", "--drain_s=0.01") as server,
        VisionClient(server.target, timeout_s=servers.PATIENCE_S) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        cut = threads.submit(client.classify, [bundles.png()] * 40, "slow")
        wait_until_computing(server.target)
        ended = server.stop()
        with pytest.raises(ClientError):
            cut.result()
    assert ended.code == 0
    assert "1 calls were still under way after 0.01 s" in ended.errors
