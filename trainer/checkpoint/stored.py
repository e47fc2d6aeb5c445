"""Models on disk: written whole, found by their steps, and read as just the arrays that are wanted, onto the host."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from serving.command import UserError
from trainer.checkpoint.card import Card, Loaded
from trainer.models.build import Params, flatten, param_shapes, unflatten
from trainer.workdir import CHECKPOINTS, steps


def save_model(path: Path, card: Card, params: Params, step: int = 0) -> None:
    """Writes a model without optimiser state under `path`, whole or not at all.

    Raises:
      UserError: when `path` already holds a checkpoint.
    """
    if steps(path):
        raise UserError(f"{path} already holds a checkpoint; give another --workdir or remove it")
    with ocp.CheckpointManager((path / CHECKPOINTS).absolute(), item_names=("params", "meta")) as manager:
        arguments = ocp.args.Composite(
            params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave({**card.to_json(), "step": step})
        )
        manager.save(step, args=arguments)


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
    return (path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path) / str(found[-1])


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
