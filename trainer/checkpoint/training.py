"""The checkpoints of a training run: saved in the background, restored onto any mesh, refused where they do not fit."""

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp

from serving.command import ExitCode, UserError
from trainer.checkpoint.card import Card
from trainer.models.build import Params, flatten
from trainer.workdir import CHECKPOINTS, steps

_SAID_BYTES = 8192  # of metadata, for an array, twice over while it is committed
_NAMED = 8  # differences in a message
_NO_NEWS = ("tracked_metric", "_CHECKPOINT_METADATA", "Failed to get item metadata")
_FULL = ("No space left on device", "os_error_code='28'")
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


def _top1(metrics: Any) -> float:
    return float(metrics["top1"])


def _is_news(record: logging.LogRecord) -> bool:
    """False of what Orbax logs with a traceback, which the next call raises, and of what is as it should be."""
    orbax = "orbax" in record.pathname
    return not orbax or (
        record.exc_info is None and not any(sign in record.getMessage() for sign in _NO_NEWS)
    )


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
            (workdir / CHECKPOINTS).absolute(), options=options, item_names=items
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
        except Exception as error:
            # Tensorstore, Orbax and Python each say it in a way of their own, and late.
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
        more = f"; and {len(differences) - _NAMED} more, listed above" if len(differences) > _NAMED else ""
        if more:
            print("\n".join(differences), file=sys.stderr)
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
