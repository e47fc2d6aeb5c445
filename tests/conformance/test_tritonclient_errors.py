"""Every way in which a request can be wrong, sent by tritonclient's own messages: the code and what the message names."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.client import Overloaded, VisionClient
from tests.support import bundles, servers

# tritonclient ships no types, so this is one in name only.
Request: Any = service_pb2.ModelInferRequest
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def stub(server: servers.ServerProcess) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def good_request(rows: int = 2, model: str = "tiny") -> Any:
    images = bundles.images(rows)
    tensor = Request.InferInputTensor(name="images", datatype="FP32", shape=images.shape)
    return Request(model_name=model, inputs=[tensor], raw_input_contents=[images.tobytes()])


def set_shape(*shape: int) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.inputs[0].shape[:] = shape

    return change


def set_batch(rows: int) -> Callable[[Any], None]:
    return lambda request: request.CopyFrom(good_request(rows))


def ask_for(*names: str) -> Callable[[Any], None]:
    return lambda request: request.outputs.extend(Request.InferRequestedOutputTensor(name=n) for n in names)


def send_twice(request: Any) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def drop_inputs(request: Any) -> None:
    del request.inputs[:]
    del request.raw_input_contents[:]


def cut_bytes(request: Any) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-4]


def cut_values(request: Any) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([0.0] * 5)


def mix(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.extend([0.0] * 128)


def rename(request: Any) -> None:
    request.inputs[0].name = "pixels"


def retype(request: Any) -> None:
    request.inputs[0].datatype = "FP64"


def parameter(name: str, value: str) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.parameters[name].string_param = value

    return change


def classification(request: Any) -> None:
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3


def model(name: str, version: str = "") -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.model_name, request.model_version = name, version

    return change


TABLE: dict[str, tuple[Callable[[Any], None], grpc.StatusCode, str]] = {
    "unknown model": (model("huge"), grpc.StatusCode.NOT_FOUND, "'huge'.*fragile, tiny"),
    "unknown version": (model("tiny", "7"), grpc.StatusCode.NOT_FOUND, "'7'.*1, 2"),
    "version that is no number": (model("tiny", "new"), grpc.StatusCode.NOT_FOUND, "'new'.*1, 2"),
    "unknown input": (rename, INVALID, "unknown input 'pixels'.*'images'"),
    "missing input": (drop_inputs, INVALID, "'images' is missing"),
    "repeated input": (send_twice, INVALID, "'images' is sent 2 times"),
    "other datatype": (retype, INVALID, "FP64, expected FP32"),
    "other shape": (set_shape(2, 8, 4, 2), INVALID, r"\[2,8,4,2\], expected \[-1,8,8,1\]"),
    "shape without the batch": (set_shape(8, 8, 1), INVALID, "-1 is the batch"),
    "empty batch": (set_shape(0, 8, 8, 1), INVALID, "at least one row"),
    "negative batch": (set_shape(-2, 8, 8, 1), INVALID, "at least one row"),
    "batch above the limit": (set_batch(9), INVALID, "batch-size must be <= 8"),
    "bytes too few": (cut_bytes, INVALID, "508 bytes.*takes 512"),
    "bytes for another batch": (set_shape(3, 8, 8, 1), INVALID, "512 bytes.*takes 768"),
    "typed values too few": (cut_values, INVALID, "5 values.*takes 128"),
    "raw and typed": (mix, INVALID, "mixes"),
    "unknown output": (ask_for("scores"), INVALID, "unknown output 'scores'.*'logits'"),
    "repeated output": (ask_for("logits", "logits"), INVALID, "twice"),
    "classification": (classification, INVALID, "Vision/Classify"),
    "timeout that is no number": (parameter("timeout", "soon"), INVALID, "'timeout' must be an integer"),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_request_gets_the_code_and_the_reason(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, name: str
) -> None:
    change, code, reason = TABLE[name]
    request = good_request()
    change(request)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request)
    assert refused.value.code() is code
    assert re.search(reason, refused.value.details())
    assert "\n" not in refused.value.details()


def test_the_request_that_the_table_changes_is_right_itself(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    assert stub.ModelInfer(good_request()).outputs[0].shape[:] == [2, 10]


@pytest.mark.parametrize("call", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_reports_on_an_unknown_model_name_what_there_is(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, call: str
) -> None:
    request = getattr(service_pb2, f"{call}Request")(name="huge")
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, call)(request)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "fragile, tiny" in refused.value.details()


def test_statistics_of_a_version_without_a_model_are_invalid_and_the_message_says_what_to_send(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelStatistics(service_pb2.ModelStatisticsRequest(version="2"))
    assert refused.value.code() is INVALID
    assert re.fullmatch(r"version '2' .*without a model: name the model too, .*", refused.value.details())


def test_a_message_above_the_limit_is_resource_exhausted_and_the_server_goes_on(tmp_path: Path) -> None:
    bundles.write_tiny(tmp_path)
    limit = 4096
    with (
        servers.serving(tmp_path, f"--max_message_bytes={limit}") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        sizes = rf" \(\d+ vs\. {limit}\)"
        for compression, said in ((grpc.Compression.NoCompression, sizes), (grpc.Compression.Gzip, "")):
            large = good_request()
            large.raw_input_contents[0] = bytes(10 * limit)
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(large, compression=compression)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert re.search(f"message larger than max{said}$", refused.value.details())
            assert stub.ModelInfer(good_request()).outputs[0].shape[:] == [2, 10]
        [model] = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="tiny")).model_stats
        assert model.inference_stats.fail.count == 0, "refused before any model is looked for"
        with (
            VisionClient(server.target) as client,
            pytest.raises(Overloaded, match=f"larger than max .*{limit}"),
        ):
            client.classify([bytes(10 * limit)], "tiny")


def test_a_model_that_fails_says_nothing_of_its_insides_and_leaves_its_neighbours_alone(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, server: servers.ServerProcess
) -> None:
    broken = good_request(1, "fragile")
    images = bundles.images(1)
    images[0, 0, 0, 0] = 10 * bundles.FRAGILE_ABOVE
    broken.raw_input_contents[0] = images.tobytes()
    calls = [
        stub.ModelInfer.future(broken if index == 4 else good_request(1, "fragile")) for index in range(8)
    ]
    for index, call in enumerate(calls):
        if index != 4:
            logits = np.frombuffer(call.result().raw_output_contents[0], np.float32)
            # The same sums of 64 float32 products in another order.
            np.testing.assert_allclose(logits, bundles.logits(bundles.images(1))[0], atol=1e-4)
            continue
        assert call.code() is grpc.StatusCode.INTERNAL
        found = re.fullmatch(r"internal error (\w{8}): the server's log has the details", call.details())
        assert found is not None
        assert f"internal error {found[1]}" in server.errors()
        assert "Gather" in server.errors()
