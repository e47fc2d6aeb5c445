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
from serving.manifest import golden_problem_of, problem_of, spec_from_proto, tokeniser_of
from serving.manifest import spec_to_proto as spec_to_proto
from serving.manifest import tokeniser_to_proto as tokeniser_to_proto
from serving.preprocess import PreprocessSpec
from serving.tokenise import TokeniserSpec

FORMAT_VERSION = 2
READABLE = (1, 2)  # 2 added fields, which when absent mean what 1 meant
MANIFEST, GOLDEN, SUMS = "manifest.json", "golden.npz", "SHA256SUMS"
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
    def preprocess(self) -> PreprocessSpec | None:
        """How images become this model's input; None when it takes none."""
        said = self.manifest.HasField("preprocessing")
        return spec_from_proto(self.manifest.preprocessing) if said else None

    @property
    def tokeniser(self) -> TokeniserSpec | None:
        """How texts become this model's input, by the vocabulary beside the manifest; None when it takes none, or does not say."""
        return tokeniser_of(self.manifest)

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
    golden = (bundle.golden_inputs, bundle.golden_outputs)
    if problem := problem_of(manifest) or golden_problem_of(manifest, *golden, GOLDEN):
        raise BundleError(f"bundle {bundle.path}: {problem}; export it again")


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
