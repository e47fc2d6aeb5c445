"""The bundle: a model as it crosses from trainer to server. Written at once or not at all; refused whole if anything is off.

REPO/NAME/VERSION/manifest.json   proto3 JSON of protos/bundle.proto
                  model.onnx      (model.int8.onnx …), one file per precision that is served
                  SHA256SUMS      of every file, the manifest too; `sha256sum -c` reads it
                  golden.npz      inputs/<tensor> and outputs/<tensor>: what the model must answer to real images
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from protos import bundle_pb2
from serving.command import UserError
from serving.preprocess import PreprocessSpec

FORMAT_VERSION = 2
READABLE = (1, 2)  # 2 added fields, which when absent mean what 1 meant
MANIFEST, GOLDEN, SUMS = "manifest.json", "golden.npz", "SHA256SUMS"
_LARGEST_BUCKET = 4096  # a server runs each bucket once before it is ready
Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]


class BundleError(UserError):
    """A bundle that is damaged, half written or from another world; the message names bundle and file."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was verified."""

    path: Path
    manifest: bundle_pb2.Manifest
    golden_inputs: Arrays
    golden_outputs: Arrays

    @property
    def preprocess(self) -> PreprocessSpec:
        """How images become this model's input."""
        return spec_from_proto(self.manifest.preprocessing)

    def model_file(self, precision: str = "") -> tuple[bundle_pb2.ModelFile, Path]:
        """The model file of `precision`, the first when none is asked for.

        Raises:
          BundleError: when the bundle has no such precision.
        """
        for model in self.manifest.models:
            if precision in ("", model.precision):
                return model, self.path / model.file
        has = ", ".join(model.precision for model in self.manifest.models) or "none"
        raise BundleError(f"bundle {self.path} has no {precision or 'model'} file; it has {has}")


def write_bundle(
    target: Path,
    manifest: bundle_pb2.Manifest,
    files: Mapping[str, bytes],
    golden_inputs: Arrays,
    golden_outputs: Arrays,
) -> Bundle:
    """Writes a bundle at `target` (REPO/NAME/VERSION) in one rename; fills in format version and digests.

    Raises:
      UserError: when `target` exists already, is no NAME/VERSION or cannot be written.
      BundleError: when no server could use what it is given; nothing is written then.
    """
    check_target(target)
    named = {f"inputs/{name}": value for name, value in golden_inputs.items()}
    named |= {f"outputs/{name}": value for name, value in golden_outputs.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **named)  # type: ignore[arg-type]
    contents = {**files, GOLDEN: buffer.getvalue()}
    sealed = bundle_pb2.Manifest()
    sealed.CopyFrom(manifest)
    sealed.format_version = FORMAT_VERSION
    for name, content in contents.items():
        sealed.digests[name] = _digest(content)
    _check(Bundle(target, sealed, golden_inputs, golden_outputs))
    contents[MANIFEST] = json_format.MessageToJson(sealed, preserving_proto_field_name=True).encode()
    contents[SUMS] = _sums(contents).encode()
    _write_atomically(target, contents)
    return read_bundle(target)


def check_target(target: Path) -> None:
    """Refuses a place where no bundle may be written.

    Raises:
      UserError: when it exists, or its last two parts are no name and positive version.
    """
    name = target.parent.name
    if not _is_version(target.name) or not name or name.startswith("."):
        raise UserError(
            f"{target} is no place for a bundle; give REPO/NAME/VERSION with a version of 1, 2, 3 ..."
        )
    if target.exists():
        raise UserError(f"{target} exists already; give the next version, or remove it")


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def _write_atomically(target: Path, contents: Mapping[str, bytes]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name that no server takes for a version, beside the target so that the rename stays on one file system.
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _unwritten(target, error) from error
    try:
        for name, content in contents.items():
            with (draft / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        draft.chmod(0o755)
        _sync_folder(draft)
        draft.rename(target)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and target.exists():
            raise UserError(
                f"{target} was written by somebody else meanwhile; give the next version"
            ) from error
        if isinstance(error, OSError):
            raise _unwritten(target, error) from error
        raise
    _sync_folder(target.parent)


def _unwritten(target: Path, error: OSError) -> Exception:
    if error.errno == errno.ENOSPC:  # has an exit code of its own
        return error
    return UserError(
        f"{target} cannot be written ({error}); give another place, or put its permissions right"
    )


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`, every file of it verified.

    Raises:
      BundleError: naming the file that is missing, altered, unknown or unreadable, or what makes no sense in the manifest.
    """
    try:
        bundle = _read_verified(path)
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be read ({error}); put its permissions right") from error
    _check(bundle)
    _check_sums(path, bundle.manifest)
    return bundle


def _sums(contents: Mapping[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())


def _check_sums(path: Path, manifest: bundle_pb2.Manifest) -> None:
    """The manifest holds the digests of all other files; its own stands in SHA256SUMS, which `sha256sum -c` reads too."""
    expected = _sums({MANIFEST: (path / MANIFEST).read_bytes()})
    if not (path / SUMS).is_file() or expected not in (path / SUMS).read_text(errors="replace"):
        raise BundleError(
            f"bundle {path}: {MANIFEST} is not what was written (its digest is not in {SUMS}); write the bundle again"
        )
    others = {name: digest.removeprefix("sha256:") for name, digest in manifest.digests.items()}
    everything = [expected, *(f"{digest}  {name}\n" for name, digest in others.items())]
    if sorted((path / SUMS).read_text(errors="replace").splitlines(keepends=True)) != sorted(everything):
        raise BundleError(
            f"bundle {path}: {SUMS} does not name the files as they are; write the bundle again"
        )


def _read_verified(path: Path) -> Bundle:
    manifest = _read_manifest(path)
    present = {file.name for file in path.iterdir()} - {MANIFEST, SUMS}
    for name in sorted(present | set(manifest.digests)):
        if name not in present:
            raise BundleError(f"bundle {path}: {name} is missing; write the bundle again")
        if name not in manifest.digests:
            raise BundleError(
                f"bundle {path}: {name} is not in the manifest; remove it or write the bundle again"
            )
        if not (path / name).is_file():
            raise BundleError(f"bundle {path}: {name} is no file; write the bundle again")
        if _digest((path / name).read_bytes()) != manifest.digests[name]:
            raise BundleError(
                f"bundle {path}: {name} is not what was written (its digest differs); write the bundle again"
            )
    golden = _read_golden(path)
    inputs, outputs = (
        {name.removeprefix(kind): array for name, array in golden.items() if name.startswith(kind)}
        for kind in ("inputs/", "outputs/")
    )
    return Bundle(path, manifest, inputs, outputs)


def _read_manifest(path: Path) -> bundle_pb2.Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"bundle {path}: no {MANIFEST}; it is half written or no bundle: write it again")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        # Before anything else is looked at: another version may hold fields that this one does not know.
        version = values.get("format_version", 0) if isinstance(values, dict) else 0
        if version not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise BundleError(
                f"bundle {path} has format version {version}, this Vitforge reads {readable}; export it again"
            )
        return json_format.ParseDict(values, bundle_pb2.Manifest())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise BundleError(
            f"bundle {path}: {MANIFEST} cannot be read ({said}); write the bundle again"
        ) from error


def _read_golden(path: Path) -> Arrays:
    try:
        with np.load(path / GOLDEN, allow_pickle=False) as golden:
            return {name: golden[name] for name in golden.files}
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise BundleError(
            f"bundle {path}: {GOLDEN} cannot be read ({error}); write the bundle again"
        ) from error


def _check(bundle: Bundle) -> None:
    """Refuses what fits together in digests and yet can be served by nobody.

    Raises:
      BundleError: naming what is missing or does not agree.
    """
    manifest = bundle.manifest
    for kind in ("models", "inputs", "outputs"):
        if not getattr(manifest, kind):
            raise BundleError(f"bundle {bundle.path}: {MANIFEST} has no {kind}; export it again")
    for model in manifest.models:
        if model.file not in manifest.digests:
            raise BundleError(
                f"bundle {bundle.path}: the model file {model.file!r} is missing; export it again"
            )
    try:
        problem = _disagreement(manifest, bundle.preprocess) or _golden_problem(bundle)
    except ValueError as error:
        raise BundleError(
            f"bundle {bundle.path}: preprocessing in {MANIFEST} cannot be used: {error}"
        ) from error
    if problem:
        raise BundleError(f"bundle {bundle.path}: {problem}; export it again")


def _disagreement(manifest: bundle_pb2.Manifest, spec: PreprocessSpec) -> str:
    for tensor in (*manifest.inputs, *manifest.outputs):
        if tensor.datatype != "FP32" or tensor.shape[:1] != [-1] or min(tensor.shape[1:], default=0) < 1:
            return f"tensor {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}, it must be FP32 [-1, …] with positive sizes"
    taken, classes = list(manifest.inputs[0].shape[1:]), manifest.outputs[0].shape[-1]
    made = [spec.height, spec.width, spec.channels]
    if taken != made:
        return f"the model takes images of {taken}, its preprocessing makes {made}"
    if manifest.labels and len(manifest.labels) != classes:
        return f"{len(manifest.labels)} labels for {classes} classes"
    if not all(0 < bucket <= _LARGEST_BUCKET for bucket in manifest.batch_buckets):
        return f"batch buckets {list(manifest.batch_buckets)}, they must lie in 1 to {_LARGEST_BUCKET}"
    return ""


def _golden_problem(bundle: Bundle) -> str:
    counts = set()
    for kind, tensors, golden in (
        ("inputs", bundle.manifest.inputs, bundle.golden_inputs),
        ("outputs", bundle.manifest.outputs, bundle.golden_outputs),
    ):
        for tensor in tensors:
            array = golden.get(tensor.name)
            if array is None:
                return f"{GOLDEN} has no {kind}/{tensor.name}"
            if array.dtype != np.float32 or array.shape[1:] != tuple(tensor.shape[1:]) or not array.size:
                found = f"{array.dtype} {list(array.shape)}"
                return f"{kind}/{tensor.name} in {GOLDEN} is {found}, the signature says float32 {list(tensor.shape)}"
            counts.add(len(array))
    return (
        "" if len(counts) == 1 else f"{GOLDEN} holds unequal numbers of inputs and outputs: {sorted(counts)}"
    )


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def spec_to_proto(spec: PreprocessSpec) -> bundle_pb2.Preprocessing:
    """The manifest's form of a spec."""
    return bundle_pb2.Preprocessing(**spec.to_json())


def spec_from_proto(message: bundle_pb2.Preprocessing) -> PreprocessSpec:
    """The spec in a manifest; ValueError when it makes no sense."""
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    values["rounding"] = values["rounding"] or "nearest"  # bundles of format version 1 do not say
    return PreprocessSpec.from_json(values)
