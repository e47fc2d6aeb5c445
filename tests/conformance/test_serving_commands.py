"""`python -m serving.main` and `python -m serving.client`: what they print, and how they end when they cannot do their work."""

import json
from pathlib import Path

import pytest

from serving.client import VisionClient
from tests.support import bundles, servers


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    bundles.write_tiny(tmp_path / "models")
    return tmp_path / "models"


def assert_refused(ended: servers.Ended, *reasons: str) -> None:
    """Exit code 2, nothing on stdout, and an error of one line that holds `reasons`, the last thing on stderr."""
    assert ended.code == 2, ended
    assert ended.lines == []
    last = ended.errors.splitlines()[-1]
    assert last.startswith("error: "), ended.errors
    assert "Traceback" not in ended.errors
    for reason in reasons:
        assert reason in last


def test_a_server_announces_itself_serves_and_ends_cleanly(repository: Path) -> None:
    with servers.serving(repository) as server:
        assert server.ready["event"] == "ready"
        assert server.ready["models"] == ["tiny/1"]
        assert server.ready["refused"] == {}
        with VisionClient(server.target) as client:
            assert client.ready("tiny")
        ended = server.stop()
    assert ended.code == 0
    assert ended.lines == ['{"event": "stopped", "answered": 0}']
    assert "loaded tiny version 1 (fp32)" in ended.errors
    assert f"serving on {server.target}" in ended.errors


def test_precision_chooses_the_model_file(repository: Path) -> None:
    images = bundles.images(2)
    with servers.serving(repository, "--precision=int8") as server, VisionClient(server.target) as client:
        shift = client.infer("tiny", images) - bundles.logits(images)
    # The shift is exact in float32; the rest is the rounding of 64 products.
    assert abs(shift - bundles.INT8_SHIFT).max() < 1e-4


def test_the_benchmark_of_executors_measures_as_many_servers_and_records_what_each_gave(
    repository: Path, tmp_path: Path
) -> None:
    flags = ("--model=tiny", "--loads=2x3", "--rounds=2", "--window_s=0.01", f"--results={tmp_path}")
    ended = servers.run("tools.bench_batching", f"--model_repository={repository}", *flags)
    assert ended.code == 0, ended.errors
    said = json.loads(ended.lines[-1])
    assert said == json.loads((tmp_path / "batching.json").read_text())
    assert [(row["load"], row["executors"]) for row in said["rows"]] == [("2x3", 1), ("2x3", 2)]
    assert said["rows"][0]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert_refused(
        servers.run("tools.bench_batching", f"--model_repository={repository}", "--model=tiny", "--loads=4"),
        "--loads: '4' is not of the form CALLERSxIMAGES",
    )


def test_a_taken_port_is_refused_although_its_owner_is_a_server_like_us(
    repository: Path, server: servers.ServerProcess
) -> None:
    port = server.ready["port"]
    ended = servers.run(
        "serving.main", f"--model_repository={repository}", "--host=127.0.0.1", f"--port={port}"
    )
    assert_refused(ended, f"127.0.0.1:{port}", "Address already in use", "--port")
    assert ended.errors.count("\n") == 1  # no line of gRPC's own


@pytest.mark.parametrize(
    ("host", "says"),
    [("no.such.host.invalid", "cannot be resolved"), ("192.0.2.1", "is no address of this machine")],
)
def test_a_host_that_is_not_here_is_refused_and_no_port_is_blamed(
    host: str, says: str, repository: Path
) -> None:
    ended = servers.run("serving.main", f"--model_repository={repository}", f"--host={host}", "--port=0")
    assert_refused(ended, f"--host={host} ", says, "give an address of this machine, as 127.0.0.1")
    assert "--port" not in ended.errors
    assert ended.errors.count("\n") == 1


def test_a_repository_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    assert_refused(servers.run("serving.main", "--port=0"), "--model_repository is missing")
    nowhere = tmp_path / "nowhere"
    assert_refused(servers.run("serving.main", f"--model_repository={nowhere}", "--port=0"), str(nowhere))
    assert_refused(servers.run("serving.main", f"--model_repository={tmp_path}", "--port=0"), "no bundle")


def test_an_altered_bundle_is_refused_and_a_whole_one_beside_it_is_served(repository: Path) -> None:
    altered = repository / "tiny" / "1" / "model.onnx"
    altered.write_bytes(altered.read_bytes() + b"x")
    arguments = (f"--model_repository={repository}", "--host=127.0.0.1", "--port=0")
    assert_refused(servers.run("serving.main", *arguments), "model.onnx", "digest")
    bundles.write_tiny(repository, "whole")
    with servers.serving(repository) as server:
        assert server.ready["models"] == ["whole/1"]
        assert "tiny version 1 is not served" in server.errors()
        assert list(server.ready["refused"]) == ["tiny/1"]
        assert "model.onnx is not what was written" in server.ready["refused"]["tiny/1"]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--port=70000", "port"),
        ("--max_batch_size=0", "max_batch_size"),
        ("--precison=int8", "precison"),
        ("extra", "unexpected argument extra"),
        ("--precision=fp8", "no fp8 file"),
    ],
)
def test_a_bad_flag_is_refused_by_name(repository: Path, flag: str, reason: str) -> None:
    ended = servers.run("serving.main", f"--model_repository={repository}", "--port=0", flag)
    assert_refused(ended, reason)


def test_a_queue_that_holds_no_full_batch_is_refused_with_both_sizes(repository: Path) -> None:
    arguments = (f"--model_repository={repository}", "--port=0", "--max_batch_size=8", "--max_queue_rows=7")
    assert_refused(servers.run("serving.main", *arguments), "--max_queue_rows=7", "--max_batch_size=8")


def test_the_client_command_prints_a_table_and_one_json_object(
    server: servers.ServerProcess, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("one.png", "two.png")]
    for seed, file in enumerate(files):
        file.write_bytes(bundles.png(seed=seed))
    ended = servers.run(
        "serving.client", f"--server={server.target}", "--model=tiny", "--top_k=2", *map(str, files)
    )
    assert ended.code == 0
    assert len(ended.lines) == 1
    results = json.loads(ended.lines[0])["results"]
    assert [result["image"] for result in results] == [str(file) for file in files]
    with VisionClient(server.target) as client:
        expected = client.classify(files, "tiny", top_k=2)
    for result, labels in zip(results, expected, strict=True):
        assert [label["name"] for label in result["labels"]] == [label.name for label in labels]
        assert labels[0].name in ended.errors


def test_the_client_command_names_what_it_cannot_do(server: servers.ServerProcess, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    image.write_bytes(bundles.png())
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    here, model = f"--server={server.target}", "--model=tiny"
    assert_refused(
        servers.run("serving.client", here, str(image)), "--model is missing", "as in --model=student"
    )
    assert_refused(servers.run("serving.client", here, model), "no image given")
    assert_refused(servers.run("serving.client", here, model, "gone.png"), "gone.png", "No such file")
    assert_refused(servers.run("serving.client", here, model, str(image), str(text)), f"error: {text}: ")
    assert_refused(servers.run("serving.client", here, "--model=huge", str(image)), "huge", "fragile, tiny")
    lost = servers.run("serving.client", "--server=127.0.0.1:1", model, str(image))
    assert_refused(lost, "no answer from 127.0.0.1:1")
