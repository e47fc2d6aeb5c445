"""The models of one folder, REPO/NAME/VERSION, loaded and proven: digests, golden answers, warm-up; only then ready.

Knows neither gRPC nor an engine: what opens a model file is handed in.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protos import bundle_pb2
from serving.batching.padding import buckets_within
from serving.bundle import MANIFEST, Bundle, BundleError, read_bundle
from serving.command import UserError
from serving.errors import ModelNotFound
from serving.runtime.base import Array, Runtime
from serving.runtime.cpu import require_cpu

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

    def run(self, inputs: Array) -> Array:
        """Logits (B, classes) or embeddings (B, E) of images float32 (B, H, W, C), or of tokens int32 (B, T)."""
        return self.runtime.run({self.input_name: inputs})[self.output_name]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One version of one model in the repository: READY, or UNAVAILABLE and why."""

    name: str
    version: str
    state: str
    reason: str = ""


class Repository:
    """Loads every bundle of a folder and finds them by name and version."""

    def __init__(
        self,
        root: Path,
        open_runtime: OpenRuntime,
        threads: int,
        precision: str = "",
        max_batch_size: int = 0,
    ) -> None:
        """The folder `root`, of which nothing is read yet.

        Args:
          root: the folder of NAME/VERSION bundles.
          open_runtime: opens a model file with the engine of a name, on so many threads.
          threads: of each model's runtime.
          precision: which model file of each bundle; "" is its first.
          max_batch_size: rows of the largest batch that models will be run on; 0 is each bundle's largest bucket.
        """
        self._root, self._open, self._threads, self._precision = root, open_runtime, threads, precision
        self._max_batch_size = max_batch_size
        self._models: dict[str, dict[str, LoadedModel]] = {}
        self._entries: list[Entry] = []

    def load_all(self) -> None:
        """Loads what is there. A bundle that fails is listed with its reason and does not stop the others.

        Raises:
          UserError: when the folder is missing, holds no bundle, or none of its bundles loads.
        """
        if not self._root.is_dir():
            raise UserError(
                f"model repository {self._root} is no folder; give one that holds NAME/VERSION folders"
            )
        for path in _versions(self._root):
            self._load(path)
        if not self._entries:
            raise UserError(
                f"model repository {self._root} holds no bundle (NAME/VERSION with a version of 1, 2, 3 ...)"
                + _folder_above(self._root)
            )
        if not self._models:
            raise UserError(
                f"no bundle in {self._root} can be served: "
                + "; ".join(entry.reason for entry in self._entries)
            )

    def _load(self, path: Path) -> None:
        name, version = path.parent.name, path.name
        try:
            model = self._proven(path)
        except (UserError, OSError) as error:
            reason = " ".join(str(error).split())
            _log.error("%s version %s is not served: %s", name, version, reason)
            self._entries.append(Entry(name, version, "UNAVAILABLE", reason))
            return
        self._models.setdefault(name, {})[version] = model
        self._entries.append(Entry(name, version, "READY"))

    def _proven(self, path: Path) -> LoadedModel:
        bundle = read_bundle(path)
        if len(bundle.manifest.inputs) != 1 or len(bundle.manifest.outputs) != 1:
            raise BundleError(
                f"bundle {path}: models of one input and one output are served, this has others"
            )
        file, model_path = bundle.model_file(self._precision)
        require_cpu(file.required_cpu_features, f"bundle {path}", "serve fp32 here")
        runtime = self._open(model_path, file.runtime, self._threads)
        model = LoadedModel(path.parent.name, path.name, file.precision, bundle, runtime)
        _check_golden(model, file.tolerance)
        self._warm(model)
        return model

    def _warm(self, model: LoadedModel) -> None:
        """Runs `model` once at each size that its batches will be padded to."""
        buckets = model.bundle.manifest.batch_buckets
        like = model.bundle.golden_inputs[model.input_name]
        for bucket in buckets_within(self._max_batch_size or max(buckets, default=1), buckets):
            _answer(model, np.zeros((bucket, *like.shape[1:]), like.dtype))

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
            raise ModelNotFound(
                f"model {name!r} has no version {version!r}; it has {', '.join(sorted(versions, key=int))}"
            )
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
    folders = (
        path for path in root.glob("*/*") if path.is_dir() and path.name.isascii() and path.name.isdecimal()
    )
    found = [
        path for path in folders if not path.name.startswith("0") and not path.parent.name.startswith(".")
    ]
    return sorted(found, key=lambda path: (path.parent.name, int(path.name)))


def _folder_above(root: Path) -> str:
    """The advice for a folder that is one model, or one version of it, instead of the repository of both."""
    if (root / MANIFEST).is_file():
        return f"; it is a bundle itself: give the folder two above, {root.parent.parent}"
    if any(child.name.isdecimal() and (child / MANIFEST).is_file() for child in root.iterdir()):
        return f"; it is a model itself: give the folder above, {root.parent}"
    return ""


def _answer(model: LoadedModel, inputs: Array) -> Array:
    try:
        return model.run(inputs)
    except Exception as error:  # engines' own exceptions share no base but Exception
        said = f"its model fails on {len(inputs)} inputs ({type(error).__name__}: {error})"
        raise BundleError(f"bundle {model.bundle.path}: {said}; export it again") from error


def _check_golden(model: LoadedModel, tolerance: bundle_pb2.Tolerance) -> None:
    bundle = model.bundle
    wanted = bundle.golden_outputs[model.output_name]
    found = _answer(model, bundle.golden_inputs[model.input_name])
    difference = float(np.max(np.abs(found - wanted))) if found.shape == wanted.shape else float("inf")
    if not difference <= tolerance.max_abs_difference:
        raise BundleError(
            f"bundle {bundle.path}: on this machine its answers to the golden inputs differ by {difference:.3g}, "
            f"allowed is {tolerance.max_abs_difference:.3g}; export it again, here or in fp32"
        )
    agreement = float(np.mean(found.argmax(axis=-1) == wanted.argmax(axis=-1)))
    if agreement < tolerance.min_top1_agreement:
        raise BundleError(
            f"bundle {bundle.path}: on this machine it gives the golden first label for {agreement:.1%} of the golden "
            f"inputs, at least {tolerance.min_top1_agreement:.1%} is asked; export it again, here or in fp32"
        )
