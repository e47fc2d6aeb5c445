"""The bundle: written at once or not at all, read back as written, and refused whole if anything is off."""

import errno
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos import bundle_pb2
from serving import bundle as module
from serving.bundle import (
    GOLDEN,
    MANIFEST,
    SUMS,
    BundleError,
    check_target,
    read_bundle,
    spec_to_proto,
    write_bundle,
)
from serving.command import UserError
from tests.support import bundles
from tests.support.bundles import rewrite_manifest

INPUTS = {"images": np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)}
OUTPUTS = {"logits": np.array([range(10), range(10, 20)], np.float32)}
FILES = {"model.onnx": b"exact", "model.int8.onnx": b"small"}
Change = Callable[[bundle_pb2.Manifest], Any]


def manifest() -> bundle_pb2.Manifest:
    made = bundle_pb2.Manifest(
        name="digits",
        inputs=[bundle_pb2.TensorSpec(name="images", datatype="FP32", shape=[-1, 8, 8, 1])],
        outputs=[bundle_pb2.TensorSpec(name="logits", datatype="FP32", shape=[-1, 10])],
        preprocessing=spec_to_proto(bundles.SPEC),
        labels=[*map(str, range(9)), "neuf·九"],
        batch_buckets=[1, 8],
        models=[
            bundle_pb2.ModelFile(file="model.onnx", runtime="onnxruntime", precision="fp32"),
            bundle_pb2.ModelFile(file="model.int8.onnx", runtime="onnxruntime", precision="int8"),
        ],
        provenance=bundle_pb2.Provenance(params=2**40, config_text='a = "b"\n'),
    )
    made.description.update({"kind": "vit", "depth": 4, "heads": [2, 1]})
    return made


def write(target: Path) -> module.Bundle:
    return write_bundle(target, manifest(), FILES, INPUTS, OUTPUTS)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "repo" / "digits" / "1"


@pytest.fixture
def written(target: Path) -> Path:
    write(target)
    return target


def refusal(path: Path) -> str:
    """The message with which the bundle is refused: one line that names it."""
    with pytest.raises(BundleError) as refused:
        read_bundle(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def reseal(path: Path, name: str, content: bytes) -> None:
    """Replaces a file and its digest, as a broken exporter would."""
    (path / name).write_bytes(content)
    rewrite_manifest(path, lambda values: values["digests"].update({name: module._digest(content)}))


def golden(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name.replace("__", "/"): array for name, array in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def test_what_is_written_is_read_back(written: Path) -> None:
    read = read_bundle(written)
    wanted = manifest()
    assert {**read.manifest.digests}.keys() == {"model.onnx", "model.int8.onnx", GOLDEN}
    wanted.format_version = 2
    for name, digest in read.manifest.digests.items():
        wanted.digests[name] = digest
    assert read.manifest == wanted
    np.testing.assert_array_equal(read.golden_inputs["images"], INPUTS["images"], strict=True)
    np.testing.assert_array_equal(read.golden_outputs["logits"], OUTPUTS["logits"], strict=True)
    assert read.preprocess == bundles.SPEC
    assert (written / "model.onnx").read_bytes() == b"exact"


def test_writing_fills_in_digests_without_touching_the_manifest_it_was_given(target: Path) -> None:
    given = manifest()
    write_bundle(target, given, FILES, INPUTS, OUTPUTS)
    assert given == manifest()


def test_a_manifest_is_read_whatever_the_locale(written: Path) -> None:
    rewrite_manifest(written, lambda values: None)  # writes what is not ASCII as it is
    assert read_bundle(written).manifest.labels[9] == "neuf·九"


def test_the_first_model_file_is_the_default_and_a_precision_picks_its_own(written: Path) -> None:
    read = read_bundle(written)
    assert read.model_file()[1] == written / "model.onnx"
    assert read.model_file("fp32")[0].file == "model.onnx"
    assert read.model_file("int8")[1] == written / "model.int8.onnx"
    with pytest.raises(BundleError, match=r"has no bf16 file; it has fp32, int8$"):
        read.model_file("bf16")


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx", GOLDEN])
@pytest.mark.parametrize("where", [0, -1])
def test_one_altered_byte_of_any_file_is_noticed(written: Path, name: str, where: int) -> None:
    content = bytearray((written / name).read_bytes())
    content[where] ^= 1
    (written / name).write_bytes(content)
    assert f"{name} is not what was written" in refusal(written)


def test_an_altered_label_in_the_manifest_is_noticed(written: Path) -> None:
    text = (written / MANIFEST).read_text()
    assert '"0"' in text or "zero" in text or "neuf" in text
    (written / MANIFEST).write_text(text.replace("neuf", "huit"))
    assert f"{MANIFEST} is not what was written" in refusal(written)


def test_sums_that_name_another_digest_or_file_are_noticed(written: Path) -> None:
    lines = (written / SUMS).read_text().splitlines(keepends=True)
    other = next(line for line in lines if MANIFEST not in line)
    for altered in (other.replace(other[0], "f" if other[0] != "f" else "0", 1), "", other + other):
        (written / SUMS).write_text("".join(lines).replace(other, altered))
        assert f"{SUMS} does not name the files as they are" in refusal(written)


@pytest.mark.parametrize("left", ["", None])
def test_a_bundle_without_its_sums_is_refused(written: Path, left: str | None) -> None:
    (written / SUMS).unlink()
    if left is not None:
        (written / SUMS).write_text(left)
    assert f"its digest is not in {SUMS}" in refusal(written)


def test_an_altered_digest_in_the_manifest_is_noticed(written: Path) -> None:
    text = (written / MANIFEST).read_text()
    digest = json.loads(text)["digests"]["model.onnx"]
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    (written / MANIFEST).write_text(text.replace(digest, other))
    assert "model.onnx is not what was written" in refusal(written)


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx", GOLDEN])
def test_a_truncated_file_is_noticed(written: Path, name: str) -> None:
    content = (written / name).read_bytes()
    (written / name).write_bytes(content[: len(content) // 2])
    assert name in refusal(written)


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx", GOLDEN])
def test_a_missing_file_is_named(written: Path, name: str) -> None:
    (written / name).unlink()
    assert f"{name} is missing" in refusal(written)


def test_an_extra_file_is_named(written: Path) -> None:
    (written / "model.onnx.bak").write_bytes(b"")
    assert "model.onnx.bak is not in the manifest" in refusal(written)


def test_a_folder_inside_is_named(written: Path) -> None:
    (written / "weights").mkdir()
    assert "weights is not in the manifest" in refusal(written)


def test_a_folder_in_the_place_of_a_file_is_refused(written: Path) -> None:
    (written / "model.onnx").unlink()
    (written / "model.onnx").mkdir()
    assert "model.onnx is no file" in refusal(written)


def test_a_link_that_leads_nowhere_is_refused(written: Path) -> None:
    (written / "model.onnx").unlink()
    (written / "model.onnx").symlink_to(written / "gone")
    assert "model.onnx is no file" in refusal(written)


def test_a_manifest_cannot_point_outside_its_bundle(written: Path) -> None:
    outside = written.parent / "secret"
    outside.write_bytes(b"x")

    def point(values: dict[str, Any]) -> None:
        values["digests"]["../secret"] = module._digest(b"x")
        values["models"][0]["file"] = "../secret"

    rewrite_manifest(written, point)
    assert "../secret is missing" in refusal(written)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # a file left open
@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_a_file_that_may_not_be_read_is_named(
    written: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs the tests may be root, who can read everything.
    whole = Path.open

    def closed(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return whole(self, *arguments, **named)

    def read(self: Path, mode: str, **named: Any) -> Any:
        with closed(self, mode, **named) as file:
            return file.read()

    monkeypatch.setattr(Path, "open", closed)
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self, "rb"))
    monkeypatch.setattr(Path, "read_text", lambda self, **named: read(self, "r", **named))
    message = refusal(written)
    assert name in message
    assert "Permission denied" in message


def test_a_folder_without_manifest_is_no_bundle(written: Path) -> None:
    (written / MANIFEST).unlink()
    assert f"no {MANIFEST}" in refusal(written)


def test_a_path_that_is_a_file_or_nothing_is_no_bundle(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    assert f"no {MANIFEST}" in refusal(file)
    assert f"no {MANIFEST}" in refusal(tmp_path / "nothing")


def test_a_manifest_cut_anywhere_is_refused(written: Path) -> None:
    text = (written / MANIFEST).read_text()
    for length in range(0, len(text.rstrip()), 97):
        (written / MANIFEST).write_text(text[:length])
        assert f"{MANIFEST} cannot be read" in refusal(written)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "null",
        "[" * 100_000,
        '{"format_version": 1, "inputs": 5}',
        '{"format_version": 1, "preprocessing": [1]}',
        '{"format_version": 1, "no_such_field": 1}',
    ],
    ids=lambda text: text[:20],
)
def test_a_manifest_of_other_json_is_refused(written: Path, text: str) -> None:
    (written / MANIFEST).write_text(text)
    assert "cannot be read" in refusal(written) or "format version" in refusal(written)


def test_a_manifest_that_is_no_text_is_refused(written: Path) -> None:
    (written / MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert f"{MANIFEST} cannot be read" in refusal(written)


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_format_version_is_refused_before_anything_else_is_looked_at(
    written: Path, version: Any
) -> None:
    rewrite_manifest(written, lambda values: values.update(format_version=version, a_field_of_tomorrow=1))
    (written / "model.onnx").unlink()
    assert f"has format version {version}, this Vitforge reads 1 and 2" in refusal(written)


def test_a_bundle_of_format_version_1_reads_as_it_always_did(written: Path) -> None:
    def as_version_1(values: dict[str, Any]) -> None:
        values["format_version"] = 1
        del values["preprocessing"]["rounding"]

    rewrite_manifest(written, as_version_1)
    assert read_bundle(written).preprocess == bundles.SPEC


# What a manifest with true digests may still say wrongly, and what the refusal names.
SENSELESS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no models": (lambda values: values.pop("models"), "has no models"),
    "no inputs": (lambda values: values.pop("inputs"), "has no inputs"),
    "no outputs": (lambda values: values.pop("outputs"), "has no outputs"),
    "no preprocessing": (lambda values: values.pop("preprocessing"), "preprocessing"),
    "unlisted model": (lambda values: values["models"][1].update(file="model.bf16.onnx"), "model.bf16.onnx"),
    "unnamed model": (lambda values: values["models"][0].pop("file"), "model file ''"),
    "manifest as model": (
        lambda values: values["models"][0].update(file=MANIFEST),
        f"{MANIFEST}' is missing",
    ),
    "no golden": (lambda values: values["inputs"][0].update(name="pixels"), "inputs/pixels"),
    "other size": (
        lambda values: values["preprocessing"].update(height=9),
        r"[8, 8, 1], its preprocessing makes [9, 8, 1]",
    ),
    "other colour": (
        lambda values: values["preprocessing"].update(color="RGB", mean=[1, 1, 1], std=[1, 1, 1]),
        "makes [8, 8, 3]",
    ),
    "bad method": (lambda values: values["preprocessing"].update(method="magic"), "method one of"),
    "NaN mean": (lambda values: values["preprocessing"].update(mean=["NaN"]), "finite"),
    "no batch": (
        lambda values: values["inputs"][0].update(shape=["8", "8", "1"]),
        "must be FP32 or INT32 [-1, …]",
    ),
    "no shape": (lambda values: values["outputs"][0].pop("shape"), "must be FP32 [-1, …]"),
    "two free sizes": (
        lambda values: values["inputs"][0].update(shape=["-1", "-1", "8", "1"]),
        "positive sizes",
    ),
    "other type": (lambda values: values["inputs"][0].update(datatype="UINT8"), "UINT8"),
    "few labels": (lambda values: values["labels"].pop(), "9 labels for 10 classes"),
    "other classes": (
        lambda values: values["outputs"][0].update(shape=["-1", "11"]),
        "10 labels for 11 classes",
    ),
    "bucket of 0": (lambda values: values["batch_buckets"].append(0), "batch buckets"),
    "bucket of billions": (lambda values: values["batch_buckets"].append(2**32 - 1), "batch buckets"),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_a_manifest_that_nobody_could_serve_is_refused_by_name(written: Path, case: str) -> None:
    change, named = SENSELESS[case]
    rewrite_manifest(written, change)
    assert named in refusal(written)


def test_a_model_without_labels_is_no_error(written: Path) -> None:
    rewrite_manifest(written, lambda values: values.pop("labels"))
    assert list(read_bundle(written).manifest.labels) == []


images, logits = INPUTS["images"], OUTPUTS["logits"]
NOT_GOLDEN = {
    "no array": (golden(), "has no inputs/images"),
    "no outputs": (golden(inputs__images=images), "has no outputs/logits"),
    "other image size": (golden(inputs__images=images[:, :7], outputs__logits=logits), "[2, 7, 8, 1]"),
    "other class count": (golden(inputs__images=images, outputs__logits=logits[:, :9]), "[2, 9]"),
    "other type": (golden(inputs__images=images.astype(np.float64), outputs__logits=logits), "float64"),
    "no image": (golden(inputs__images=images[:0], outputs__logits=logits[:0]), "[0, 8, 8, 1]"),
    "a scalar": (golden(inputs__images=np.array(1, np.float32), outputs__logits=logits), "float32 []"),
    "unequal numbers": (golden(inputs__images=images[:1], outputs__logits=logits), "unequal numbers"),
    "objects": (golden(inputs__images=np.array([{}], object), outputs__logits=logits), "cannot be read"),
    "no archive": (b"PK no archive", "cannot be read"),
    "nothing": (b"", "cannot be read"),
}


@pytest.mark.parametrize("case", NOT_GOLDEN)
def test_golden_arrays_that_are_none_of_the_signature_are_refused(written: Path, case: str) -> None:
    content, named = NOT_GOLDEN[case]
    reseal(written, GOLDEN, content)
    assert named in refusal(written)


def test_a_single_array_in_the_place_of_the_golden_archive_is_refused(written: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, images)
    reseal(written, GOLDEN, buffer.getvalue())
    assert f"{GOLDEN} cannot be read" in refusal(written)


@pytest.mark.parametrize(
    "path",
    [
        "1",
        "repo/digits/v1",
        "repo/digits/0",
        "repo/digits/01",
        "repo/digits/-1",
        "repo/digits/１",
        ".hidden/1",
        "../1",
    ],
)
def test_a_target_that_is_no_name_and_version_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="give REPO/NAME/VERSION"):
        write(Path(path))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_and_left_as_it_was(written: Path) -> None:
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    with pytest.raises(UserError, match="exists already; give the next version"):
        write(written)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


def test_a_target_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "digits").write_bytes(b"")
    check_target(tmp_path / "digits" / "1")  # there is nothing yet to clash with
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "digits" / "1")


def test_a_bundle_that_could_not_be_read_back_is_not_written(target: Path) -> None:
    for files, change in (
        ({"model.onnx": b"x"}, None),
        (FILES, lambda made: made.ClearField("inputs")),
        (FILES, lambda made: made.labels.append("more")),
    ):
        given = manifest()
        if change:
            change(given)
        with pytest.raises(BundleError):
            write_bundle(target, given, files, INPUTS, OUTPUTS)
        assert not target.exists()


class Crash(BaseException):
    """The end of a process, as far as Python can show it."""


def nothing_left(target: Path) -> bool:
    return not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize("error", [Crash(), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("moment", ["first fsync", "second fsync", "rename"])
def test_a_crash_while_writing_leaves_neither_version_nor_draft(
    target: Path, moment: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    moments = {"first fsync": 1, "second fsync": 2}
    real = os.fsync

    def fsync(number: int) -> None:
        seen.append([path.name for path in target.parent.iterdir()])
        if len(seen) == moments.get(moment):
            raise error
        real(number)

    def rename(self: Path, other: Path) -> None:
        assert other == target
        raise error

    monkeypatch.setattr(os, "fsync", fsync)
    if moment == "rename":
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        write(target)
    assert all(name.startswith(".1-") for names in seen for name in names)  # never a half version
    assert nothing_left(target)


def test_every_file_and_the_draft_are_on_disk_before_they_get_the_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real, move = os.fsync, Path.rename

    def fsync(number: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        real(number)

    def rename(self: Path, other: Path) -> Path:
        assert {*FILES, GOLDEN, MANIFEST, SUMS, self.name} == set(synced)
        synced.append("renamed")
        return move(self, other)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    write(target)
    assert synced[-2:] == ["renamed", "digits"]


def test_a_full_disk_stays_an_os_error_so_that_its_exit_code_is_45(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as full:
        write(target)
    assert full.value.errno == errno.ENOSPC
    assert nothing_left(target)


def test_any_other_failure_of_the_disk_is_a_users_error(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"cannot be written .*Input/output error"):
        write(target)
    assert nothing_left(target)


def test_of_two_writers_one_wins_and_the_other_is_told(target: Path) -> None:
    together = threading.Barrier(2)
    ends: list[str] = []

    def writer() -> None:
        together.wait()
        try:
            write(target)
            ends.append("written")
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=writer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [lost] = [end for end in ends if end != "written"]
    assert "give the next version" in lost
    read_bundle(target)
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_writer_that_loses_at_the_very_rename_is_told_and_spoils_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Path.rename

    def rename(self: Path, other: Path) -> Path:
        monkeypatch.undo()
        write(target)  # somebody else, a moment earlier
        return move(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="written by somebody else meanwhile"):
        write(target)
    read_bundle(target)
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_bundle_can_be_read_by_other_users_of_the_machine(written: Path) -> None:
    assert written.stat().st_mode & 0o777 == 0o755
