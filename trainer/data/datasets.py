"""Data sets by the name that a configuration gives them. A new one is a file of its own and a line here."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from serving.command import UserError
from serving.tokenise import TokeniserSpec
from trainer.data import cifar, digits, folder, mnist, pairs, shards, tfds
from trainer.data.bad_images import Sound
from trainer.data.source import Dataset

_NAMED: dict[str, Callable[[str, bool], Dataset]] = {
    "digits": digits.load,
    "mnist": mnist.load_mnist,
    "fashion_mnist": mnist.load_fashion_mnist,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
}
_KINDS = ("folder:PATH", "array_record:GLOB", "tfds:NAME")
_CACHE = Path("~/.cache/vitforge/bad_images")


def open_dataset(name: str, data_dir: str = "", bad_images: str = "fatal") -> Dataset:
    """The data set called `name`, its files from `data_dir` where it needs some; `bad_images` as in `trainer.config.Data`.

    Raises:
      UserError: for an unknown name (with the nearest), or files that are missing or damaged.
    """
    if name in _NAMED:
        return _NAMED[name](data_dir, bad_images == "skip")
    sound = _sound(bad_images)
    kinds: dict[str, Callable[[str], Dataset]] = {
        "folder": partial(_without, data_dir, partial(folder.load, sound=sound)),
        "array_record": partial(_without, data_dir, partial(shards.load, sound=sound)),
        "tfds": partial(tfds.load, data_dir=data_dir, sound=sound),
    }
    kind, colon, rest = name.partition(":")
    if colon and rest and kind in kinds:
        return kinds[kind](rest)
    known = (*_NAMED, *_KINDS)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise UserError(f"unknown data set {name!r}; nearest is {near[0]!r}, all are {', '.join(known)}")


def open_pairs(name: str, tokens: TokeniserSpec, vocab: Path, bad_images: str = "fatal") -> Dataset:
    """The images with texts called `name`, the texts as tokens by the vocabulary in the file `vocab`.

    Raises:
      UserError: for pairs or a vocabulary that cannot be read.
    """
    return pairs.load(name, tokens, vocab, _sound(bad_images))


def read_pairs(name: str, bad_images: str = "fatal") -> dict[str, pairs.Pairs]:
    """Split → the images with texts called `name`, the texts as they are.

    Raises:
      UserError: for pairs that cannot be read.
    """
    return pairs.read(name, _sound(bad_images))


def _sound(bad_images: str) -> Sound:
    return Sound(bad_images, _CACHE.expanduser())


def classes_of(name: str) -> int:
    """How many classes a data set has that is known by name; 0 where its files say."""
    return {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}.get(name, 0)


def channels_of(name: str) -> int:
    """Of the images of a data set: 1 for grey, 3 for colour, as all are that come from files."""
    return 1 if name in ("digits", "mnist", "fashion_mnist") else 3


def open_again(meta: Mapping[str, Any], data_dir: str = "", vocab: str = "") -> Dataset:
    """The data set that a checkpoint with this `meta` learnt from, its files from `data_dir` if they are elsewhere now.

    Raises:
      UserError: as `open_dataset` does, and for texts without the vocabulary that they were read by.
    """
    if meta["dataset"].startswith(pairs.KIND):
        if not vocab:
            raise UserError(
                f"{meta['dataset']} has texts; give the vocabulary that they were read by, with --vocab"
            )
        tokens = TokeniserSpec.from_json(meta["tokeniser"])
        return open_pairs(meta["dataset"], tokens, Path(vocab), meta["bad_images"])
    return open_dataset(meta["dataset"], data_dir or meta["data_dir"], meta.get("bad_images", "fatal"))


def _without(data_dir: str, load: Callable[[str], Dataset], path: str) -> Dataset:
    if data_dir:
        raise UserError(
            f"data_dir={data_dir!r} is set, but the path stands in the name, {path!r}; leave it empty"
        )
    return load(path)
