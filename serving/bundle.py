"""The bundle: a model as it crosses from trainer to server. Written at once or not at all; refused whole if anything is off.

    REPO/NAME/VERSION/manifest.json   proto3 JSON of protos/bundle.proto
                      model.onnx      (model.int8.onnx …), one file per precision that is served
                      golden.npz      inputs/<tensor> and outputs/<tensor>: what the model must answer to real images
"""

import dataclasses
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from protos import bundle_pb2
from serving.command import UserError
from serving.preprocess import PreprocessSpec

FORMAT_VERSION = 1
MANIFEST, GOLDEN = "manifest.json", "golden.npz"
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
    target: Path, manifest: bundle_pb2.Manifest, files: Mapping[str, bytes], golden_inputs: Arrays, golden_outputs: Arrays
) -> Bundle:
    """Writes a bundle at `target` (REPO/NAME/VERSION) in one rename; fills in format version and digests.

    Raises:
      UserError: when `target` exists already or is no NAME/VERSION.
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
    contents[MANIFEST] = json_format.MessageToJson(sealed, preserving_proto_field_name=True).encode()
    _write_atomically(target, contents)
    return read_bundle(target)


def check_target(target: Path) -> None:
    """Refuses a place where no bundle may be written.

    Raises:
      UserError: when it exists, or its last two parts are no name and positive version.
    """
    if not _is_version(target.name) or not target.parent.name:
        raise UserError(f"{target} is no place for a bundle; give REPO/NAME/VERSION with a version of 1, 2, 3 ...")
    if target.exists():
        raise UserError(f"{target} exists already; give the next version, or remove it")


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def _write_atomically(target: Path, contents: Mapping[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that no server takes for a version, beside the target so that the rename stays on one file system.
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, content in contents.items():
            with (draft / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and target.exists():
            raise UserError(f"{target} was written by somebody else meanwhile; give the next version") from error
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`, every file of it verified.

    Raises:
      BundleError: naming the file that is missing, altered, unknown or unreadable.
    """
    manifest = _read_manifest(path)
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    for name in sorted(present | set(manifest.digests)):
        if name not in present:
            raise BundleError(f"bundle {path}: {name} is missing; write the bundle again")
        if name not in manifest.digests:
            raise BundleError(f"bundle {path}: {name} is not in the manifest; remove it or write the bundle again")
        if _digest((path / name).read_bytes()) != manifest.digests[name]:
            raise BundleError(f"bundle {path}: {name} is not what was written (its digest differs); write the bundle again")
    for model in manifest.models:
        if model.file not in present:
            raise BundleError(f"bundle {path}: the model file {model.file} is missing; write the bundle again")
    golden = _read_golden(path)
    inputs, outputs = ({name.partition("/")[2]: golden[name] for name in golden if name.startswith(kind)} for kind in ("inputs/", "outputs/"))
    return Bundle(path, manifest, inputs, outputs)


def _read_manifest(path: Path) -> bundle_pb2.Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"bundle {path}: no {MANIFEST}; it is half written or no bundle: write it again")
    try:
        manifest = json_format.Parse(file.read_text(), bundle_pb2.Manifest())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {path}: {MANIFEST} cannot be read ({error}); write the bundle again") from error
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(f"bundle {path} has format version {manifest.format_version}, this server reads {FORMAT_VERSION}; export it again")
    try:
        spec_from_proto(manifest.preprocessing)
    except ValueError as error:
        raise BundleError(f"bundle {path}: preprocessing in {MANIFEST} cannot be used: {error}") from error
    return manifest


def _read_golden(path: Path) -> Arrays:
    try:
        with np.load(path / GOLDEN, allow_pickle=False) as golden:
            return {name: golden[name] for name in golden.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"bundle {path}: {GOLDEN} cannot be read ({error}); write the bundle again") from error


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def spec_to_proto(spec: PreprocessSpec) -> bundle_pb2.Preprocessing:
    """The manifest's form of a spec."""
    return bundle_pb2.Preprocessing(**spec.to_json())


def spec_from_proto(message: bundle_pb2.Preprocessing) -> PreprocessSpec:
    """The spec in a manifest; ValueError when it makes no sense."""
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    return PreprocessSpec.from_json(values)
