"""Arrays out of a file into ours, one at a time, and what became of each."""

import dataclasses
from collections.abc import Collection, Mapping

from serving.command import UserError
from trainer.weights.archive import Archive, floats
from trainer.weights.contents import Contents
from trainer.weights.forms import Array, Place, Shape
from trainer.weights.report import shortened


@dataclasses.dataclass(frozen=True)
class Taken:
    """Our arrays by name; names of ours that the file lacks; names of the file that are left over, with their shapes."""

    arrays: dict[str, Array]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def take(
    archive: Archive,
    contents: Contents,
    shapes: Mapping[str, Shape],
    skipped: Collection[str],
    allow: Collection[str],
) -> Taken:
    """Our arrays of `shapes` (all but `skipped`) out of `archive`.

    Raises:
      UserError: naming the arrays that are misshapen, or missing or left over and not allowed, before anything is read.
    """
    missing = _missing(archive, contents, shapes, skipped)
    _check_shapes(archive, contents, shapes, skipped)
    if missing and "missing" not in allow:
        raise UserError(
            f"{archive.source} lacks {_listed(tuple(missing.values()))}; give the model that it is of, or allow missing "
            "to begin with fresh ones"
        )
    left = _left_over(archive, contents, shapes)
    if left and "unused" not in allow:
        raise UserError(
            f"{archive.source} has {_listed(left)}, expected is no such array; give the model that it is of, or allow unused "
            "to leave them out"
        )
    aside = tuple(f"{name} {archive.headers[name].shape}: {why}" for name, why in contents.set_aside.items())
    return Taken(_read(archive, contents, shapes, {*skipped, *missing}), tuple(missing), left + aside)


def _listed(lines: tuple[str, ...]) -> str:
    return ", ".join(shortened(lines, 3))


def _missing(
    archive: Archive, contents: Contents, shapes: Mapping[str, Shape], skipped: Collection[str]
) -> dict[str, str]:
    """Our names that the file lacks, with what a message says of each."""
    found = {}
    for name, shape in shapes.items():
        place = contents.places.get(name)
        if name not in skipped and (place is None or place.name not in archive.headers):
            found[name] = (
                f"array {place.name} of shape {place.stored(shape)}"
                if place
                else f"array {name} of shape {shape}"
            )
    return found


def _check_shapes(
    archive: Archive, contents: Contents, shapes: Mapping[str, Shape], skipped: Collection[str]
) -> None:
    for name, shape in shapes.items():
        place = contents.places.get(name)
        if place is None or name in skipped or place.name not in archive.headers:
            continue
        actual, expected = archive.headers[place.name].shape, place.stored(shape)
        if actual != expected:
            raise UserError(
                f"{archive.source}: array {place.name} has shape {actual}, expected is {expected}; "
                "give the model that it is of (python -m tools.models lists all)"
            )


def _left_over(archive: Archive, contents: Contents, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    used = {contents.places[name].name for name in shapes if name in contents.places}
    rest = (name for name in archive.headers if name not in used and name not in contents.set_aside)
    return tuple(f"{name} of shape {archive.headers[name].shape}" for name in rest)


def _read(
    archive: Archive, contents: Contents, shapes: Mapping[str, Shape], without: Collection[str]
) -> dict[str, Array]:
    """By arrays of the file, so that each is read once, however many of ours lie in it."""
    uses: dict[str, list[tuple[str, Place]]] = {}
    for name in shapes:
        if name not in without:
            uses.setdefault(contents.places[name].name, []).append((name, contents.places[name]))
    arrays: dict[str, Array] = {}
    for stored, ours in uses.items():
        whole = floats(archive, stored)
        arrays |= {name: place.read(whole, shapes[name]) for name, place in ours}
    return {name: arrays[name] for name in shapes if name in arrays}
