"""Checkpoints: our schema on disk, Orbax and tensorstore behind it and nowhere else.

    PATH/checkpoints/STEP/params   the nested dict of arrays, by name
                         /ema      their moving average, which is the model where it is there (training only)
                         /opt      what the optimiser keeps, by name (training only)
                         /recent   what steps were like of late (training only)
                         /meta     JSON: description, preprocessing, labels, configuration, data position, hashes

Training writes and restores through `TrainCheckpoints` (asynchronously, sharded, onto any mesh). A finished or cut model is
written by `save_model`. Everybody else reads with `load`, which takes just the chosen arrays, onto the host.
"""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from serving.command import ExitCode, UserError
from serving.preprocess import PreprocessSpec
from trainer import description
from trainer.description import Classifier, TextTower, TwoTowers
from trainer.models.build import Params, flatten, param_shapes, unflatten

_FOLDER = "checkpoints"
_SAID_BYTES = 8192  # of metadata, for an array, twice over while it is committed
_NAMED = 8  # differences in a message
_NO_NEWS = ("tracked_metric", "_CHECKPOINT_METADATA", "Failed to get item metadata")
_FULL = ("No space left on device", "os_error_code='28'")
Meta = dict[str, Any]
Items = dict[str, Any]


class State(Protocol):
    """What training saves; `trainer.step.TrainState` has this form."""

    @property
    def step(self) -> jax.Array: ...
    @property
    def params(self) -> Params: ...
    @property
    def opt(self) -> Any: ...
    @property
    def ema(self) -> Params | None: ...
    @property
    def recent(self) -> Params: ...


@dataclasses.dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself: the model, how images are prepared for it, its classes, and where it came from.

    `meta` holds stage, dataset, data_dir, bad_images, fingerprint, config_text, config_hash, teacher_hash, calibration_hash and
    step; of a training also pretrained_hash, the weights_hash of what it began with.
    """

    description: Classifier | TwoTowers
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    meta: Meta

    def to_json(self) -> Meta:
        """One JSON object."""
        return {
            "description": description.to_json(self.description),
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            **self.meta,
        }

    @property
    def classifier(self) -> Classifier:
        """The model, where it is a classifier of images.

        Raises:
          UserError: when it is a pair, or has no head.
        """
        return description.require_classifier(self.description, "this command")

    @staticmethod
    def from_json(value: Meta) -> "Card":
        """The card that `to_json` wrote."""
        rest = dict(value)
        model = description.from_json(rest.pop("description"))
        if isinstance(model, TextTower):
            raise UserError(
                "a checkpoint of a text tower alone cannot be read; of texts there are only pairs"
            )
        preprocess = PreprocessSpec.from_json(rest.pop("preprocess"))
        return Card(model, preprocess, tuple(rest.pop("labels")), rest)


@dataclasses.dataclass(frozen=True)
class Loaded(Card):
    """A card with the model's parameters as numpy arrays on the host; meta has weights_hash too."""

    params: Params


def _top1(metrics: Any) -> float:
    return float(metrics["top1"])


def _is_news(record: logging.LogRecord) -> bool:
    """False of what Orbax logs with a traceback, which the next call raises, and of what is as it should be."""
    return record.exc_info is None and not any(sign in record.getMessage() for sign in _NO_NEWS)


logging.getLogger("absl").addFilter(_is_news)


class TrainCheckpoints:
    """The checkpoints of one training run in its workdir; saving goes on in the background while training does."""

    def __init__(self, workdir: Path, keep_last: int, keep_best: int = 0) -> None:
        keeps = ocp.checkpoint_managers
        best = keeps.BestN(get_metric_fn=_top1, n=keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_top1 if keep_best else None,
            preservation_policy=keeps.AnyPreservationPolicy([keeps.LatestN(n=keep_last), best]),
            enable_async_checkpointing=True,
        )
        items = ("params", "opt", "ema", "recent", "meta")
        self._manager = ocp.CheckpointManager(
            (workdir / _FOLDER).absolute(), options=options, item_names=items
        )

    def latest_step(self) -> int | None:
        """The newest step whose checkpoint is whole."""
        return self._manager.latest_step()

    def save(self, state: State, card: Card, top1: float | None = None) -> None:
        """Starts saving `state` under its own step number; an error of the previous save is raised here.

        `top1` is what the best ones are known by; None where it was not evaluated.
        """
        trees = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        arguments = ocp.args.Composite(**trees, meta=ocp.args.JsonSave(card.to_json()))
        number = int(card.meta["step"])
        with self._room_for(number):
            _require_room(Path(self._manager.directory), jax.tree.leaves(_items(state)))
            self._manager.save(number, args=arguments, metrics=None if top1 is None else {"top1": top1})

    @contextlib.contextmanager
    def _room_for(self, step: int) -> Iterator[None]:
        """Says in one line what a full disk leaves."""
        try:
            yield
        except (
            Exception
        ) as error:  # tensorstore, Orbax and Python each say it in a way of their own, and late
            if not any(sign in str(error) for sign in _FULL):
                raise
            with contextlib.suppress(Exception):  # what is still being saved may become whole
                self._manager.wait_until_finished()
            whole = steps(Path(self._manager.directory))
            left = (
                f"the checkpoint of step {whole[-1]} is whole"
                if whole
                else "there is no whole checkpoint yet"
            )
            raise UserError(
                f"no space left on the disk for the checkpoint of step {step} in {self._manager.directory}: {left}; free some and "
                "run the same command",
                ExitCode.DISK_FULL,
            ) from error

    def restore(self, like: State) -> Items:
        """The newest params, opt, recent and, where `like` has one, ema, in the shapes, dtypes and shardings of `like`.

        Raises:
          UserError: when they are damaged, or not of these shapes.
        """
        latest = self.latest_step()
        folder = Path(self._manager.directory) / str(latest)
        asked = {name: jax.tree.map(_abstract, tree) for name, tree in _items(like).items()}
        if not (folder / "recent").is_dir():  # as none had before there was a guard: it begins to look anew
            del asked["recent"]
        arguments = ocp.args.Composite(
            **{name: ocp.args.StandardRestore(tree) for name, tree in asked.items()}
        )
        _require_same(folder, asked)
        try:
            saved = self._manager.restore(latest, args=arguments)
            leaves = [saved["opt"][path] for path in asked["opt"]]
        except (ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]  # Orbax explains at length
            raise UserError(
                f"checkpoint {folder} cannot be restored: {reason}; "
                "remove it to go on from the one before, or give another --workdir"
            ) from error
        opt = jax.tree.unflatten(jax.tree.structure(like.opt), leaves)
        return {**{name: saved[name] for name in asked}, "opt": opt}

    def close(self) -> None:
        """Waits until the last save is whole.

        Raises:
          UserError: when the disk has no room for it.
        """
        with self._room_for(self._manager.latest_step() or 0):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()


def _require_same(folder: Path, asked: Items) -> None:
    """Refuses arrays of another shape or dtype than is asked for, or others: Orbax would cast the one, and pad or cut the other.

    Raises:
      UserError: naming every array that differs, as it is stored and as it is asked for.
    """
    differences = []
    with ocp.StandardCheckpointer() as reader:
        for item, tree in asked.items():
            stored, wanted = _forms(_metadata(reader, folder / item)), _forms(tree)
            if not stored:
                continue
            differences += [
                f"{item}/{name} is {stored.get(name, 'not there')}, {wanted.get(name, 'not asked for')} wanted"
                for name in sorted(stored.keys() | wanted.keys())
                if stored.get(name) != wanted.get(name)
            ]
    if differences:
        more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise UserError(
            f"checkpoint {folder} holds other arrays than this run: {'; '.join(differences[:_NAMED])}{more}; go on with what it "
            "began with, or begin anew from it with --config.pretrained in another --workdir"
        )


def _metadata(reader: ocp.StandardCheckpointer, folder: Path) -> Any:
    """What is said of an item's arrays; nothing where it is not there or cannot be read: restoring says why."""
    try:
        return reader.metadata(folder.absolute()).item_metadata.tree
    except (ValueError, KeyError, OSError, AttributeError):
        return {}


def _forms(tree: Any) -> dict[str, str]:
    """Name → dtype and shape, such as float32 (3, 4)."""
    return {name: f"{leaf.dtype} {tuple(leaf.shape)}" for name, leaf in flatten(tree).items()}


def _require_room(folder: Path, leaves: list[jax.Array]) -> None:
    """Refuses to begin what would fill the disk: what is cut short there is said by many threads at once.

    Raises:
      OSError: ENOSPC, when the arrays and what is said of each need more than is free.
    """
    needed = sum(leaf.nbytes for leaf in leaves) + _SAID_BYTES * len(leaves)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _items(state: State) -> Items:
    """The trees that a checkpoint of training holds."""
    ema = {} if state.ema is None else {"ema": state.ema}
    return {"params": state.params, "opt": flatten(state.opt), "recent": state.recent, **ema}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def save_model(path: Path, card: Card, params: Params, step: int = 0) -> None:
    """Writes a model without optimiser state under `path`, whole or not at all.

    Raises:
      UserError: when `path` already holds a checkpoint.
    """
    if steps(path):
        raise UserError(f"{path} already holds a checkpoint; give another --workdir or remove it")
    with ocp.CheckpointManager((path / _FOLDER).absolute(), item_names=("params", "meta")) as manager:
        arguments = ocp.args.Composite(
            params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave({**card.to_json(), "step": step})
        )
        manager.save(step, args=arguments)


def steps(path: Path) -> list[int]:
    """The steps whose checkpoints under `path` (a workdir or its checkpoints folder) are whole, oldest first."""
    root = path / _FOLDER if (path / _FOLDER).is_dir() else path
    if not root.is_dir():
        return []
    found = (
        folder
        for folder in root.iterdir()
        if folder.name.isdecimal() and (folder / "meta" / "metadata").is_file()
    )
    return sorted(int(folder.name) for folder in found)


def holds_training(path: Path) -> bool:
    """Whether the newest checkpoint under `path` is one that training goes on from, and not a model alone."""
    return (_step_folder(path) / "opt").is_dir()


def _step_folder(path: Path) -> Path:
    if (path / "meta" / "metadata").is_file():
        return path
    found = steps(path)
    if not found:
        raise UserError(
            f"no checkpoint under {path}; give a training or compression workdir, or one of its checkpoints"
        )
    return (path / _FOLDER if (path / _FOLDER).is_dir() else path) / str(found[-1])


def load_card(path: str | Path) -> Card:
    """What the newest checkpoint under `path` says of itself, without reading a single array.

    Raises:
      UserError: when there is none, or it is damaged.
    """
    folder = _step_folder(Path(path))
    try:
        return Card.from_json(ocp.JsonCheckpointHandler().restore((folder / "meta").absolute()))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"checkpoint {folder} cannot be read: {error}; use another one or train again"
        ) from error


def load(path: str | Path, names: Sequence[str] | None = None) -> Loaded:
    """The newest model under `path` with its arrays (or just those of `names`, "/"-joined) on the host: averaged, where they are.

    Raises:
      UserError: when there is none, it is damaged, or its arrays do not fit its description.
    """
    card, folder = load_card(path), _step_folder(Path(path))
    shapes = flatten(param_shapes(card.description))
    chosen = list(shapes) if names is None else list(names)
    for name in chosen:
        if name not in shapes:
            raise UserError(
                f"checkpoint {folder}: array {name} is asked for, its description has no such array"
            )
    averaged = folder / "ema"
    item = averaged if averaged.is_dir() else folder / "params"
    pending = {name: _open(item, name) for name in chosen}
    arrays = {}
    for name, future in pending.items():
        try:
            arrays[name] = np.asarray(future.result().read().result())
        except (ValueError, OSError) as error:
            reason = str(error).split("[")[0]
            raise UserError(
                f"checkpoint {folder}: array {name} cannot be read: {reason}; use another one"
            ) from error
        if arrays[name].shape != shapes[name].shape:
            stored, asked = arrays[name].shape, shapes[name].shape
            raise UserError(
                f"checkpoint {folder}: array {name} has shape {stored}, its description asks for {asked}"
            )
    params = unflatten(arrays)
    return Loaded(
        card.description,
        card.preprocess,
        card.labels,
        {**card.meta, "weights_hash": weights_hash(params)},
        params,
    )


def _open(folder: Path, name: str) -> Any:
    # Orbax keeps the arrays of an item in one OCDBT database, each a zarr under its dotted path.
    database = {
        "driver": "ocdbt",
        "base": f"file://{folder.absolute()}/",
        "path": name.replace("/", ".") + "/",
    }
    return tensorstore.open({"driver": "zarr", "kvstore": database}, open=True, read=True)


def weights_hash(params: Params) -> str:
    """sha256 over names, dtypes, shapes and values of all arrays, in the order of names."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(params).items()):
        value = np.ascontiguousarray(array)
        digest.update(f"{name}:{value.dtype}:{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def export_optimized(
    model: str,
    input_shape: Sequence[int],
    output_path: str | Path,
    weights: str = "",
    *,
    precision: str = "fp32",
    images: Sequence[str] = (),
    sha256: str = "",
) -> Path:
    """Writes a bundle that `serving.main --model_repository=output_path` serves, and returns its folder.

    Args:
      model: a variant's name, such as "Ti_16"; may be empty when `weights` are a checkpoint of ours.
      input_shape: (batch, H, W, C) or (H, W, C); the batch stays free whatever is given.
      output_path: the model repository; the bundle goes to MODEL/1 in it, or to the next version.
      weights: of any origin that `trainer.weights.load` reads; fresh ones (with a warning) when empty.
      precision: "fp32", "int8", "int8_weights", or "auto": the fastest of them that holds, as measured.
      images: pictures and folders of them to prove on; int8 needs them.
      sha256: of the file of `weights`; not compared when empty.

    Raises:
      UserError: for a shape or a model that do not fit, or when the bundle would not say what the model says.
    """
    # Imported late: the exporter itself reads checkpoints.
    from trainer.export import optimized

    return optimized.export_optimized(
        model, input_shape, Path(output_path), weights, precision, images, sha256
    )
