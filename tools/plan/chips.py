"""What the TPU chips can do, by the name of their topology; from Google Cloud's pages "TPU v4", "v5e", "v5p" and "v6e"."""

import dataclasses
import math
import re

from serving.command import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one chip: FLOP/s in bfloat16, bytes of HBM, bytes/s to it, and bytes/s to other chips over all links together."""

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dimensions: int  # of a topology: 2 or 3
    cores_as: str = (
        ""  # libtpu's word for both cores of a chip as one device, where it does not do so by itself
    )
    largest_host: int = 4  # chips of a host of its own; hosts of larger slices have four each


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 1228e9, 300e9, 3, "megacore"),
        Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9, 2, largest_host=8),
        Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9, 3),
        Chip("v6e", 918e12, 32 * _GIB, 1640e9, 448e9, 2, largest_host=8),
    )
}
_CHIPS_OF_A_HOST = 4
_LIBTPU = {"v5p": "v5"}  # libtpu's name, where it is another


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind in slices of one shape."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def name(self) -> str:
        """As libtpu knows it, such as v5:2x2x2."""
        kind = _LIBTPU.get(self.chip.name, self.chip.name)
        return f"{kind}:{self.grid}"

    @property
    def grid(self) -> str:
        """The shape as Google Cloud writes it, such as 2x2x2."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """Of one slice."""
        return math.prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        """A small slice is one host with all its chips."""
        return self.chips if self.chips <= self.chip.largest_host else _CHIPS_OF_A_HOST

    @property
    def hosts(self) -> int:
        """Of one slice."""
        return self.chips // self.chips_per_host


def topology(text: str, slices: int) -> Topology:
    """The topology that `text` names, such as v5e:16x16 or v5p:4x4x8.

    Raises:
      UserError: for a chip that is not known, or a shape that is none of its.
    """
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology={text}: {kind!r} must be one of {', '.join(CHIPS)}, as in v5e:16x16")
    chip = CHIPS[kind]
    sizes = tuple(int(size) for size in shape.split("x")) if re.fullmatch(r"\d+(x\d+)+", shape) else ()
    if len(sizes) != chip.dimensions or min(sizes) < 1:
        example = "4x4" if chip.dimensions == 2 else "2x2x4"
        raise UserError(f"--topology={text}: {kind} has {chip.dimensions} dimensions, as in {kind}:{example}")
    if math.prod(sizes) > chip.largest_host and math.prod(sizes) % _CHIPS_OF_A_HOST:
        raise UserError(
            f"--topology={text}: a slice of several hosts has a multiple of {_CHIPS_OF_A_HOST} chips"
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    return Topology(chip, sizes, slices)
