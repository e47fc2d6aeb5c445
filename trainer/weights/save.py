"""Weights out: the flat npz that the original code reads, and safetensors with timm's names.

A file is written whole under another name beside its target and then renamed; a target that exists is refused.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from serving.command import UserError
from trainer.description import Mixer, Model, TextTower, TwoTowers, ViT
from trainer.models.build import Params, check_params, flatten
from trainer.weights import layouts, published, timm
from trainer.weights.forms import Array, Place, Places, join
from trainer.weights.layouts import Layout
from trainer.weights.source import fetched


def save_npz(path: Path, model: Model, params: Params, layout: Layout = layouts.RELEASED) -> None:
    """Writes `params` as the published npz, in the layout of released files unless another is given.

    An import saved in its own layout has the names, shapes, types and values that were read.

    Raises:
      UserError: for a model that the format cannot hold, arrays that do not fit it, or a target that exists.
    """
    check_params(model, params, str(path))
    _require_uniform(model, "the original code")
    leaves = _with_class_position_folded(model, flatten(params), layout)
    dtypes = dict(layout.dtypes)
    files = _by_file_array(published.places(model, layout), leaves, "the published npz")
    with _written(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as members:
        for name, parts in files.items():
            dtype = dtypes.get(name.removeprefix(layout.prefix), "float32")
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, join(parts).astype(_numpy_dtype(dtype), copy=False))


def save_safetensors(path: Path, model: Model, params: Params) -> None:
    """Writes `params` with timm's names, as a state dict of the timm model has them.

    Raises:
      UserError: for a model that timm does not have, arrays that do not fit it, or a target that exists.
    """
    from safetensors.numpy import save_file

    check_params(model, params, str(path))
    _require_uniform(model, "timm")
    files = _by_file_array(timm.places(model), flatten(params), "timm")
    with _written(path) as draft:
        arrays = {name: np.ascontiguousarray(join(parts)) for name, parts in files.items()}
        save_file(arrays, draft, metadata={"format": "pt"})


def copy_file(source: str, path: Path, sha256: str) -> None:
    """Writes the file at `source`, a path or a URL, unchanged to `path`.

    Raises:
      UserError: when it has become another file since its `sha256` was taken, or the target exists.
    """
    with fetched(source, sha256) as file, _written(path) as draft:
        shutil.copyfile(file.path, draft)


def departures(model: Model, suffix: str) -> tuple[str, ...]:
    """Where those who read the file compute otherwise than `model`: a sentence each, none when all agrees."""
    if suffix == ".npz":
        theirs = (
            dataclasses.replace(model, gelu="tanh", norm_eps=1e-6)
            if isinstance(model, ViT | Mixer)
            else model
        )
        if isinstance(theirs, ViT) and theirs.stem:
            theirs = dataclasses.replace(
                theirs, stem=type(theirs.stem)(theirs.stem.width, theirs.stem.stages)
            )
        reader = "the original code"
    else:
        theirs, reader = timm.with_conventions(model), "timm"
    return tuple(
        f"{reader} has {name} {getattr(theirs, name)}, this model {getattr(model, name)}"
        for name in ("gelu", "norm_eps", "stem")
        if getattr(model, name, None) != getattr(theirs, name, None)
    )


def _require_uniform(model: Model, reader: str) -> None:
    """Published models are described by one shape of block; a cut model is not."""
    towers: tuple[ViT | TextTower, ...] = ()
    if isinstance(model, TwoTowers):
        towers = (model.image, model.text)
    elif isinstance(model, ViT | TextTower):
        towers = (model,)
    if isinstance(model, ViT) and model.stem and model.stem.groups:
        raise UserError(
            f"the model was cut: its stem has fewer channels, which {reader} cannot build; keep it as a checkpoint or "
            "export it as a bundle"
        )
    for tower in (one for one in towers if one.blocks):
        block = tower.blocks[0]
        fits = block.qk_dim == block.v_dim and block.num_heads * block.qk_dim == tower.width and block.mlp_dim
        if set(tower.blocks) != {block} or block.merge or not fits:
            raise UserError(
                "the model was cut: its blocks differ or merge tokens, or their heads do not fill the width of "
                f"{tower.width}, which {reader} cannot build; keep it as a checkpoint or export it as a bundle"
            )


def _by_file_array(
    places: Places, leaves: dict[str, Array], reader: str
) -> dict[str, list[tuple[Place, Array]]]:
    """Our arrays by the name of the file's array in which they lie."""
    files: dict[str, list[tuple[Place, Array]]] = {}
    for name, leaf in leaves.items():
        if name not in places:
            raise UserError(f"{reader} has no name for array {name}; write the model in another format")
        files.setdefault(places[name].name, []).append((places[name], np.asarray(leaf)))
    return files


def _with_class_position_folded(model: Model, leaves: dict[str, Array], layout: Layout) -> dict[str, Array]:
    """Where positions have no class row, what stands in ours goes into the class token, to which it is added anyway."""
    if layout.class_row:
        return leaves
    at = "image/" if isinstance(model, TwoTowers) else ""
    if f"{at}cls" not in leaves:
        return leaves
    token = np.asarray(leaves[f"{at}cls"]) + np.asarray(leaves[f"{at}pos"])[:, :1]
    return {**leaves, f"{at}cls": token}


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` when all went well."""
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.chmod(0o644)
        check_target(path)  # somebody else may have been faster
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Refuses a file that exists.

    Raises:
      UserError: naming it.
    """
    if path.exists():
        raise UserError(f"{path} exists already; give another name, or remove it")
