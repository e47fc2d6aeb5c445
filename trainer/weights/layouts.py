"""The layouts of the published npz: one set of modules, several ways to name and stack them.

prefix      none in released files, `opt/target/` where an optimiser was saved too, `params/` and `params/img/` of big_vision
numbering   released files number all modules of a block together, current Linen code each kind by itself
stacked     big_vision can keep all layers in one array with a leading axis (its `scan`)
positions   three places over the years; only with the class row where the class token is put in front before positions are added
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Literal

from trainer.weights.archive import Header

_ROOTS = ("", "opt/target/", "params/")
# A ViT below img/ is found as the image tower of a pair; a Mixer was never one, and lies there by itself.
PREFIXES = (*_ROOTS, *(f"{root}img/" for root in _ROOTS))
POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
Kind = Literal["vit", "mixer", "two_towers"]
# An array that every model of the kind has.
_ANCHORS: dict[Kind, str] = {
    "two_towers": "img/embedding/kernel",
    "vit": "embedding/kernel",
    "mixer": "stem/kernel",
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How the blocks of one transformer are named."""

    numbering: Literal["released", "linen"] = "released"
    stacked: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one file is laid out; an export in the layout of an import has the same names, shapes and types.

    `old_norms`: GroupNorms that are kept as (1, 1, 1, C), by name. `dtypes`: the types of arrays that are not float32, by name.
    """

    prefix: str = ""
    image: Encoder = Encoder()
    text: Encoder = Encoder()
    positions: str = POSITIONS[0]
    class_row: bool = True
    old_norms: frozenset[str] = frozenset()
    dtypes: tuple[tuple[str, str], ...] = ()


RELEASED = Layout()


def is_published(names: Collection[str]) -> bool:
    """Whether arrays of these names are a model of the original code."""
    return any(prefix + anchor in names for prefix in PREFIXES for anchor in _ANCHORS.values())


def find(names: Collection[str]) -> tuple[Kind, str]:
    """What kind of published model the arrays `names` are of, and the prefix below which it lies."""
    return next(
        (kind, prefix) for prefix in PREFIXES for kind, anchor in _ANCHORS.items() if prefix + anchor in names
    )


def layout_of(headers: Mapping[str, Header], prefix: str, has_class: bool) -> Layout:
    """The layout of the model below `prefix`."""
    names = {name.removeprefix(prefix): header for name, header in headers.items() if name.startswith(prefix)}
    tower = "img/" if f"img/{POSITIONS[0]}" in names or f"img/{POSITIONS[2]}" in names else ""
    positions = next((place for place in POSITIONS if tower + place in names), POSITIONS[0])
    rows = names[tower + positions].shape[1] if tower + positions in names else 0
    return Layout(
        prefix=prefix,
        image=_encoder(names, f"{tower}Transformer"),
        text=_encoder(names, "txt/Encoder_0"),
        positions=positions,
        class_row=not (has_class and positions == POSITIONS[2] and _is_square(rows)),
        old_norms=frozenset(
            name
            for name, header in names.items()
            if re.search(r"gn(\d+|_root|_proj)/(scale|bias)$", name) and header.shape[:-1] == (1, 1, 1)
        ),
        dtypes=tuple(
            sorted((name, header.dtype) for name, header in names.items() if header.dtype != "float32")
        ),
    )


def _is_square(count: int) -> bool:
    return count == round(count**0.5) ** 2


def _encoder(names: Collection[str], at: str) -> Encoder:
    stacked = any(name.startswith(f"{at}/encoderblock/") for name in names)
    first = f"{at}/encoderblock{'' if stacked else '_0'}"
    released = any(name.startswith(f"{first}/MlpBlock_3/") for name in names)
    return Encoder("released" if released else "linen", stacked)
