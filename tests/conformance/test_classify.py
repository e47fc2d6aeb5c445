"""Vision/Classify against a real server, with our own client: the same answers as ModelInfer, and pictures that are none."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image

from serving import preprocess
from serving.client import ClientError, Invalid, NotFound, Unavailable, VisionClient
from tests.support import bundles, servers

# Probabilities travel as float32: half a unit in the last place of a number below 1, and the rounding of other batch sizes.
PROBABILITY_ROUNDING = 1e-5


@pytest.fixture
def client(server: servers.ServerProcess) -> Iterator[VisionClient]:
    with VisionClient(server.target) as connected:
        yield connected


def test_classify_on_png_bytes_answers_as_infer_on_the_prepared_tensors(client: VisionClient) -> None:
    pictures = [bundles.png(seed=1), bundles.png(8, 8, seed=2), bundles.png(50, 13, seed=3, color=True)]
    found = client.classify(pictures, "tiny", top_k=bundles.CLASSES)
    logits = client.infer("tiny", preprocess.prepare(pictures, bundles.SPEC)).astype(np.float64)
    for labels, row in zip(found, logits, strict=True):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert [label.index for label in labels] == np.argsort(-row).tolist()
        assert [label.name for label in labels] == [bundles.LABELS[label.index] for label in labels]
        expected = [probabilities[label.index] for label in labels]
        np.testing.assert_allclose(
            [label.probability for label in labels], expected, atol=PROBABILITY_ROUNDING
        )


def test_more_images_than_a_batch_holds_are_answered_in_order(client: VisionClient) -> None:
    pictures = [bundles.png(seed=seed) for seed in range(21)]
    together = client.classify(pictures, "tiny", top_k=1)
    alone = [client.classify([picture], "tiny", top_k=1)[0] for picture in pictures]
    assert [[label.index for label in labels] for labels in together] == [
        [label.index for label in labels] for labels in alone
    ]
    assert len({labels[0].index for labels in together}) > 1, (
        "the pictures do not all look alike to the model"
    )


def test_five_labels_come_when_none_are_asked_for_and_never_more_than_classes(client: VisionClient) -> None:
    assert len(client.classify([bundles.png()], "tiny", top_k=0)[0]) == 5
    assert len(client.classify([bundles.png()], "tiny", top_k=99)[0]) == bundles.CLASSES


def test_a_jpeg_and_a_path_are_taken_as_well(client: VisionClient, tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = tmp_path / "photograph.jpg"
    Image.fromarray(pixels).save(file, "JPEG")
    [from_path] = client.classify([file], "tiny")
    [from_bytes] = client.classify([file.read_bytes()], "tiny")
    assert from_path == from_bytes


def enormous_png(width: int, height: int) -> bytes:
    """A small file that says it is a PNG of `width` × `height` pixels and holds none of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def truncated_png() -> bytes:
    whole = bundles.png(64, 64)
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "no image"),
        (b"hello", "no image"),
        (truncated_png(), "no image"),
        (enormous_png(10_000, 8_000), "10000 x 8000 pixels"),
        (enormous_png(60_000, 60_000), ""),
    ],
    ids=["empty", "text", "truncated", "large", "enormous"],
)
def test_a_picture_that_cannot_be_decoded_is_invalid_and_named(
    client: VisionClient, picture: bytes, reason: str
) -> None:
    with pytest.raises(Invalid, match=rf"^images\[2\]: .*{reason}"):
        client.classify([bundles.png(), bundles.png(), picture, bundles.png(), b"worse"], "tiny")


def test_a_request_without_images_is_invalid(client: VisionClient) -> None:
    with pytest.raises(Invalid, match="takes 1 to 64 images, got 0"):
        client.classify([], "tiny")


def test_an_unknown_model_and_version_are_not_found_and_the_message_names_what_exists(
    client: VisionClient,
) -> None:
    with pytest.raises(NotFound, match=r"huge.*fragile, tiny"):
        client.classify([bundles.png()], "huge")
    with pytest.raises(NotFound, match=r"9.*1, 2"):
        client.classify([bundles.png()], "tiny", version="9")


def test_classify_counts_in_the_statistics_that_infer_counts_in(
    client: VisionClient, server: servers.ServerProcess
) -> None:
    with triton.InferenceServerClient(server.target) as stock:
        [before] = stock.get_inference_statistics("tiny", "2").model_stats
        client.classify([bundles.png(seed=seed) for seed in range(11)], "tiny", version="2")
        [after] = stock.get_inference_statistics("tiny", "2").model_stats
    assert after.inference_count - before.inference_count == 11
    assert after.execution_count - before.execution_count == 2, "a batch of 8 and one of 3"
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1


def test_a_call_that_is_refused_once_its_model_is_found_counts_as_failed_and_no_other_does(
    client: VisionClient, server: servers.ServerProcess
) -> None:
    with triton.InferenceServerClient(server.target) as stock:
        before = stock.get_inference_statistics("tiny", "2").model_stats[0].inference_stats
        for pictures in ([b"no picture"], []):
            with pytest.raises(Invalid):
                client.classify(pictures, "tiny", version="2")
        with pytest.raises(Invalid, match="expected FP32"):
            client.infer("tiny", np.zeros((1, 8, 8, 1)), version="2")
        with pytest.raises(NotFound):
            client.classify([bundles.png()], "tiny", version="9")
        after = stock.get_inference_statistics("tiny", "2").model_stats[0].inference_stats
    assert after.fail.count - before.fail.count == 3
    assert after.fail.ns > before.fail.ns
    assert after.success == before.success


def test_the_client_tells_wrong_arrays_and_missing_files_from_lost_servers(
    client: VisionClient, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match="FP64, expected FP32"):
        client.infer("tiny", np.zeros((1, 8, 8, 1)))
    with pytest.raises(Invalid, match="complex128 do not travel"):
        client.infer("tiny", np.zeros((1, 8, 8, 1), complex))
    missing = tmp_path / "nowhere.png"
    with pytest.raises(Invalid, match=r"nowhere\.png: No such file"):
        client.classify([missing], "tiny")
    with VisionClient("127.0.0.1:1") as lost:
        assert not lost.ready()
        with pytest.raises(Unavailable, match=r"no answer from 127.0.0.1:1: .*check the address"):
            lost.metadata("tiny")


def test_every_message_of_the_client_is_one_line(client: VisionClient) -> None:
    with pytest.raises(ClientError) as refused:
        client.classify([bundles.png()], "tiny\nand more")
    assert "\n" not in str(refused.value)


def test_metadata_says_what_to_send(client: VisionClient) -> None:
    found = client.metadata("tiny")
    assert found.versions == ("1", "2")
    assert (found.inputs[0].name, found.inputs[0].shape) == ("images", (-1, 8, 8, 1))
    assert client.ready("tiny")
    assert not client.ready("tiny", version="3")
