"""The models of one folder, REPO/NAME/VERSION, loaded and proven: digests, golden answers, warm-up; only then ready.

Knows neither gRPC nor an engine: what opens a model file is handed in.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from serving.bundle import Bundle, BundleError, read_bundle
from serving.command import UserError
from serving.errors import ModelNotFound
from serving.runtime.base import Array, Runtime

OpenRuntime = Callable[[Path, str, int], Runtime]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that has answered its golden inputs."""

    name: str
    version: str
    precision: str
    bundle: Bundle
    runtime: Runtime

    @property
    def input_name(self) -> str:
        """The name of the one input tensor."""
        return self.bundle.manifest.inputs[0].name

    @property
    def output_name(self) -> str:
        """The name of the one output tensor."""
        return self.bundle.manifest.outputs[0].name

    def run(self, images: Array) -> Array:
        """Logits (B, classes) of images float32 (B, H, W, C)."""
        return self.runtime.run({self.input_name: images})[self.output_name]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One version of one model in the repository: READY, or UNAVAILABLE and why."""

    name: str
    version: str
    state: str
    reason: str = ""


class Repository:
    """Loads every bundle of a folder and finds them by name and version."""

    def __init__(self, root: Path, open_runtime: OpenRuntime, threads: int, precision: str = "") -> None:
        self._root, self._open, self._threads, self._precision = root, open_runtime, threads, precision
        self._models: dict[str, dict[str, LoadedModel]] = {}
        self._entries: list[Entry] = []

    def load_all(self) -> None:
        """Loads what is there. A bundle that fails is listed with its reason and does not stop the others.

        Raises:
          UserError: when the folder is missing, holds no bundle, or none of its bundles loads.
        """
        if not self._root.is_dir():
            raise UserError(f"model repository {self._root} is no folder; give one that holds NAME/VERSION folders")
        for path in _versions(self._root):
            self._load(path)
        if not self._entries:
            raise UserError(f"model repository {self._root} holds no bundle (NAME/VERSION with a version of 1, 2, 3 ...)")
        if not self._models:
            raise UserError(f"no bundle in {self._root} can be served: " + "; ".join(entry.reason for entry in self._entries))

    def _load(self, path: Path) -> None:
        name, version = path.parent.name, path.name
        try:
            model = self._proven(path)
        except (UserError, OSError) as error:
            _log.error("%s version %s is not served: %s", name, version, error)
            self._entries.append(Entry(name, version, "UNAVAILABLE", str(error)))
            return
        self._models.setdefault(name, {})[version] = model
        self._entries.append(Entry(name, version, "READY"))

    def _proven(self, path: Path) -> LoadedModel:
        bundle = read_bundle(path)
        file, model_path = bundle.model_file(self._precision)
        _check_cpu(list(file.required_cpu_features), path)
        runtime = self._open(model_path, file.runtime, self._threads)
        model = LoadedModel(path.parent.name, path.name, file.precision, bundle, runtime)
        _check_golden(model, file.tolerance.max_abs_difference)
        shape = bundle.golden_inputs[model.input_name].shape[1:]
        for bucket in bundle.manifest.batch_buckets:
            model.run(np.zeros((bucket, *shape), np.float32))
        return model

    def get(self, name: str, version: str = "") -> LoadedModel:
        """The model called `name`, its newest version when none is asked for.

        Raises:
          ModelNotFound: naming what there is.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(f"unknown model {name!r}; this server has {', '.join(sorted(self._models))}")
        chosen = version or max(versions, key=int)
        if chosen not in versions:
            raise ModelNotFound(f"model {name!r} has no version {version!r}; it has {', '.join(sorted(versions, key=int))}")
        return versions[chosen]

    def versions(self, name: str) -> list[str]:
        """The loaded versions of `name`, oldest first; empty for an unknown model."""
        return sorted(self._models.get(name, {}), key=int)

    def models(self) -> Iterator[LoadedModel]:
        """Every loaded model."""
        return (model for versions in self._models.values() for model in versions.values())

    def index(self) -> list[Entry]:
        """Every version that was found, with its state."""
        return list(self._entries)


def _versions(root: Path) -> list[Path]:
    folders = (path for path in root.glob("*/*") if path.is_dir() and path.name.isascii() and path.name.isdecimal())
    found = [path for path in folders if not path.name.startswith("0") and not path.parent.name.startswith(".")]
    return sorted(found, key=lambda path: (path.parent.name, int(path.name)))


def _check_golden(model: LoadedModel, tolerance: float) -> None:
    bundle = model.bundle
    if model.input_name not in bundle.golden_inputs or model.output_name not in bundle.golden_outputs:
        raise BundleError(f"bundle {bundle.path}: golden.npz lacks {model.input_name} or {model.output_name}; export it again")
    wanted = bundle.golden_outputs[model.output_name]
    found = model.run(bundle.golden_inputs[model.input_name])
    difference = float(np.max(np.abs(found - wanted))) if found.shape == wanted.shape else float("inf")
    if not difference <= tolerance:
        raise BundleError(
            f"bundle {bundle.path}: on this machine its answers to the golden images differ by {difference:.3g}, "
            f"allowed is {tolerance:.3g}; export it again, here or in fp32"
        )


def _check_cpu(required: list[str], path: Path) -> None:
    info = Path("/proc/cpuinfo")
    if not required or not info.is_file():
        return
    flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "").split()
    if not set(required) & set(flags):
        raise BundleError(f"bundle {path} needs a CPU with one of {', '.join(required)}, which this one lacks; serve fp32 here")
