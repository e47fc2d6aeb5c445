"""The towers of a text-image pair behind a real server: tokens as INT32, embeddings back, and Classify refused in one line."""

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving.client import Invalid, VisionClient
from tests.support import bundles, servers, towers

# The same sums of float32 in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def towers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.ServerProcess]:
    repository = tmp_path_factory.mktemp("pair")
    towers.write_text_tower(repository)
    towers.write_image_tower(repository)
    with servers.serving(repository, "--max_batch_size=8") as running:
        yield running


@pytest.fixture
def client(towers_server: servers.ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(towers_server.target) as connected:
        yield connected


def tokens_input(tokens: np.ndarray, datatype: str = "INT32") -> triton.InferInput:
    tensor = triton.InferInput("tokens", list(tokens.shape), datatype)
    tensor.set_data_from_numpy(tokens)
    return tensor


def test_metadata_shows_that_tokens_are_whole_numbers_and_embeddings_are_not(
    client: triton.InferenceServerClient,
) -> None:
    found = client.get_model_metadata("pair-text")
    [tokens], [embeddings] = found.inputs, found.outputs
    assert (tokens.name, tokens.datatype, list(tokens.shape)) == ("tokens", "INT32", [-1, towers.TOKENS])
    assert (embeddings.name, embeddings.datatype) == ("embeddings", "FP32")
    assert list(embeddings.shape) == [-1, towers.WIDTH]
    config = client.get_model_config("pair-text", as_json=True)["config"]
    assert (config["input"][0]["data_type"], config["output"][0]["data_type"]) == ("TYPE_INT32", "TYPE_FP32")


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_raw_tokens_become_embeddings(client: triton.InferenceServerClient, rows: int) -> None:
    tokens = towers.tokens(rows)
    result = client.infer("pair-text", [tokens_input(tokens)])
    np.testing.assert_allclose(
        result.as_numpy("embeddings"), towers.text_embeddings(tokens), atol=ROUNDING, strict=True
    )


def test_typed_tokens_get_the_answer_of_raw_ones(towers_server: servers.ServerProcess) -> None:
    tokens = towers.tokens(2)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="tokens", datatype="INT32", shape=tokens.shape
    )
    tensor.contents.int_contents.extend(tokens.ravel().tolist())
    with grpc.insecure_channel(towers_server.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(service_pb2.ModelInferRequest(model_name="pair-text", inputs=[tensor]))
    found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)
    np.testing.assert_allclose(found, towers.text_embeddings(tokens), atol=ROUNDING)


def test_an_image_tower_answers_embeddings_of_images(client: triton.InferenceServerClient) -> None:
    images = bundles.images(3)
    tensor = triton.InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    found = client.infer("pair-image", [tensor]).as_numpy("embeddings")
    np.testing.assert_allclose(found, towers.image_embeddings(images), atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "datatype", "said"),
    [
        (np.full((1, 6), 8, np.int32), "INT32", "input 'tokens' has the value 8: it takes 0 to 7"),
        (np.full((1, 6), -1, np.int32), "INT32", "input 'tokens' has the value -1: it takes 0 to 7"),
        (np.zeros((1, 7), np.int32), "INT32", r"input 'tokens' has shape \[1,7\], expected \[-1,6\]"),
        (np.zeros((1, 6), np.int64), "INT64", "input 'tokens' has datatype INT64, expected INT32"),
        (np.zeros((1, 6), np.float32), "FP32", "input 'tokens' has datatype FP32, expected INT32"),
    ],
    ids=str,
)
def test_tokens_that_the_tower_cannot_read_are_refused_in_one_line(
    client: triton.InferenceServerClient, tokens: np.ndarray, datatype: str, said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said) as refused:
        client.infer("pair-text", [tokens_input(tokens, datatype)])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "\n" not in refused.value.message()
    good = towers.tokens(1)
    result = client.infer("pair-text", [tokens_input(good)])
    np.testing.assert_allclose(result.as_numpy("embeddings"), towers.text_embeddings(good), atol=ROUNDING)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "pair-text",
            r"model 'pair-text' takes no images: call ModelInfer with its input 'tokens', INT32 \[-1,6\]",
        ),
        ("pair-image", "model 'pair-image' answers 'embeddings' and no classes: call ModelInfer for them"),
    ],
)
def test_classify_on_a_tower_is_refused_in_one_line(
    towers_server: servers.ServerProcess, model: str, said: str
) -> None:
    with VisionClient(towers_server.target) as client, pytest.raises(Invalid, match=said) as refused:
        client.classify([bundles.png()], model)
    assert "\n" not in str(refused.value)


def test_a_classifier_beside_the_towers_still_classifies(tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tmp_path_factory.mktemp("both")
    towers.write_text_tower(repository)
    bundles.write_tiny(repository)
    with servers.serving(repository) as running, VisionClient(running.target) as client:
        assert len(client.classify([bundles.png()], "tiny", top_k=3)[0]) == 3


def test_a_bundle_of_format_version_1_is_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tmp_path_factory.mktemp("old")
    path = bundles.write_tiny(repository).path

    def as_version_1(values: dict) -> None:
        values["format_version"] = 1
        del values["preprocessing"]["rounding"]

    bundles.rewrite_manifest(path, as_version_1)
    assert "rounding" not in json.loads((path / "manifest.json").read_text())["preprocessing"]
    with servers.serving(repository) as running, VisionClient(running.target) as client:
        assert len(client.classify([bundles.png()], "tiny", top_k=3)[0]) == 3
