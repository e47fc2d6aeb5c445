"""Weights are fetched from wherever fsspec reaches, and are the file that was asked for."""

import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pytest

from serving.command import UserError
from tests.support import published_files as files
from trainer.weights.load import load_weights
from trainer.weights.source import fetched, json_beside


def put(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


def test_a_url_loads_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, **files.vit_npz())  # type: ignore[arg-type]
    put("memory://published/weights.npz", path.read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    remote = load_weights("memory://published/weights.npz", "Toy", sha256=digest)
    assert remote.sha256 == digest
    np.testing.assert_array_equal(remote.params["cls"], load_weights(str(path), "Toy").params["cls"])
    np.testing.assert_array_equal(load_weights(f"file://{path}", "Toy").params["cls"], remote.params["cls"])


def test_the_copy_of_a_url_is_gone_afterwards() -> None:
    put("memory://published/a", b"content")
    with fetched("memory://published/a") as source:
        assert source.path.read_bytes() == b"content"
    assert not source.path.exists()


def test_a_wrong_digest_ends_before_the_file_is_used() -> None:
    put("memory://published/a", b"content")
    with (
        pytest.raises(UserError, match="memory://published/a has the SHA-256"),
        fetched("memory://published/a", "0" * 64),
    ):
        raise AssertionError("the file was used")


def test_a_url_that_leads_nowhere_is_one_line() -> None:
    with pytest.raises(UserError, match="memory://nowhere/a does not exist"), fetched("memory://nowhere/a"):
        pass


def test_a_protocol_that_nobody_knows_is_one_line() -> None:
    with (
        pytest.raises(UserError, match="gopher://a/b cannot be opened: Protocol not known"),
        fetched("gopher://a/b"),
    ):
        pass


def test_a_folder_instead_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: IsADirectoryError"), fetched(str(tmp_path)):
        pass


def test_json_beside_a_url_is_read_and_its_absence_is_nothing() -> None:
    put("memory://published/config.json", b'{"a": 1}')
    assert json_beside("memory://published/model.safetensors", "config.json") == {"a": 1}
    assert json_beside("memory://published/model.safetensors", "other.json") == {}


def test_json_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        json_beside(str(tmp_path / "model.safetensors"), "config.json")
