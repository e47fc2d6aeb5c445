"""The unmodified tritonclient against a real server: every call that we serve, and what its answers must hold."""

import asyncio
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support import bundles, servers

# The same sums of 64 float32 products in another order.
ROUNDING = 1e-4


@pytest.fixture
def client(server: servers.ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.target) as connected:
        yield connected


def images_input(images: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    return tensor


def test_the_server_is_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_a_model_is_ready_in_the_versions_that_exist_and_unknown_ones_are_not(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("tiny", "3")
    assert not client.is_model_ready("huge")


def test_server_metadata_offers_statistics(client: triton.InferenceServerClient) -> None:
    found = client.get_server_metadata()
    assert found.name == "vitforge"
    assert "statistics" in found.extensions


def test_model_metadata_has_the_batch_dimension_and_every_version(
    client: triton.InferenceServerClient,
) -> None:
    found = client.get_model_metadata("tiny")
    assert list(found.versions) == ["1", "2"]
    assert found.platform == "onnxruntime_onnx"
    [images], [logits] = found.inputs, found.outputs
    assert (images.name, images.datatype, list(images.shape)) == ("images", "FP32", [-1, 8, 8, 1])
    assert (logits.name, logits.datatype, list(logits.shape)) == ("logits", "FP32", [-1, 10])


def test_model_config_has_the_batch_size_and_dimensions_without_the_batch(
    client: triton.InferenceServerClient,
) -> None:
    config = client.get_model_config("tiny").config
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert not config.model_transaction_policy.decoupled
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("images", [8, 8, 1])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("logits", [10])]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_infer_answers_the_model_and_echoes_the_id(client: triton.InferenceServerClient, rows: int) -> None:
    images = bundles.images(rows)
    result = client.infer("tiny", [images_input(images)], request_id="seven", model_version="1")
    np.testing.assert_allclose(result.as_numpy("logits"), bundles.logits(images), atol=ROUNDING)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "tiny", "1")


def test_infer_takes_the_newest_version_when_none_is_named(client: triton.InferenceServerClient) -> None:
    result = client.infer("tiny", [images_input(bundles.images(1))])
    assert result.get_response().model_version == "2"


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests_are_taken(client: triton.InferenceServerClient, compression: str) -> None:
    images = bundles.images(2)
    result = client.infer("tiny", [images_input(images)], compression_algorithm=compression)
    np.testing.assert_allclose(result.as_numpy("logits"), bundles.logits(images), atol=ROUNDING)


def test_the_parameters_that_stock_clients_send_are_taken(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        "tiny",
        [images_input(bundles.images(1))],
        outputs=[triton.InferRequestedOutput("logits")],
        priority=1,
        timeout=60_000_000,
    )
    assert result.as_numpy("logits").shape == (1, 10)


def test_typed_contents_get_the_answer_of_raw_ones(server: servers.ServerProcess) -> None:
    images = bundles.images(2)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="images", datatype="FP32", shape=images.shape
    )
    tensor.contents.fp32_contents.extend(images.ravel().tolist())
    with grpc.insecure_channel(server.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(service_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor]))
    assert len(response.raw_output_contents) == len(response.outputs) == 1
    logits = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)
    np.testing.assert_allclose(logits, bundles.logits(images), atol=ROUNDING)


def test_many_callers_at_once_each_get_their_own_rows(server: servers.ServerProcess) -> None:
    async def call(client: triton_aio.InferenceServerClient, seed: int) -> None:
        images = bundles.images(1 + seed % 5, seed)
        result = await client.infer("tiny", [images_input(images)], request_id=str(seed))
        np.testing.assert_allclose(result.as_numpy("logits"), bundles.logits(images), atol=ROUNDING)
        assert result.get_response().id == str(seed)

    async def scenario() -> None:
        async with triton_aio.InferenceServerClient(server.target) as client:
            for wave in range(10):
                await asyncio.gather(*(call(client, 16 * wave + index) for index in range(16)))

    asyncio.run(scenario())


def test_statistics_grow_by_what_was_asked(client: triton.InferenceServerClient) -> None:
    [before] = client.get_inference_statistics("tiny", "1").model_stats
    for rows in (2, 3):
        client.infer("tiny", [images_input(bundles.images(rows))], model_version="1")
    [after] = client.get_inference_statistics("tiny", "1").model_stats
    assert (after.name, after.version) == ("tiny", "1")
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 2
    assert after.last_inference >= before.last_inference
    for kind in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        was, now = (getattr(stats.inference_stats, kind) for stats in (before, after))
        assert now.count - was.count == 2, kind
        assert now.ns >= was.ns, kind
    assert {batch.batch_size for batch in after.batch_stats} >= {2, 3}


def test_statistics_without_a_name_cover_every_version_of_every_model(
    client: triton.InferenceServerClient,
) -> None:
    found = client.get_inference_statistics().model_stats
    assert [(stats.name, stats.version) for stats in found] == [
        ("fragile", "1"),
        ("tiny", "1"),
        ("tiny", "2"),
    ]
    named = client.get_inference_statistics("tiny").model_stats
    assert [(stats.name, stats.version) for stats in named] == [("tiny", "1"), ("tiny", "2")]


def test_calls_that_are_not_served_say_so(client: triton.InferenceServerClient) -> None:
    for call in (client.get_model_repository_index, client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            call()
