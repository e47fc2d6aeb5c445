"""The collectives of a compiled program, by kind: how often a device takes part in one in a step, and with how many bytes.

They are read from the program's text. One inside a loop counts as often as the loop goes round.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "f8e4m3fn": 8,
    "f8e5m2": 8,
    "bf16": 16,
    "f16": 16,
    "s16": 16,
}
_BITS |= {"u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .+ \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?(%?[\w.\-]+(?:, *%?[\w.\-]+)*)\}?"
)
_BODY = re.compile(r"body=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count[^\d]*"?(\d+)')
_CONSTANT = re.compile(r"s32\[\][^=]* constant\((\d+)\)")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")

_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})")
# What a device sends for a result of one byte in a group of n, by rings (Thakur et al. 2005, sections 4.1 to 4.5).
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}


@dataclasses.dataclass
class Total:
    """Of one kind, on each device, in one step: how many, the bytes of their results, and the bytes that a device sends."""

    count: int = 0
    bytes: int = 0
    sent_bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Instruction:
    form: str  # the shapes of its result
    name: str  # of the operation
    rest: str


def collectives(program: str) -> dict[str, Total]:
    """Kind → what a device does of it in one run of `program`, the text of a compiled module; results' bytes."""
    computations, entry = _computations(program)
    found: dict[str, Total] = defaultdict(Total)
    for instruction, times in _executed(computations, entry, 1):
        kind = instruction.name.removesuffix("-start")
        if kind in KINDS:
            size, group = _size(instruction), _group(instruction)
            found[kind].count += times
            found[kind].bytes += times * size
            found[kind].sent_bytes += times * size * _SENT[kind](group)
    return dict(found)


def _computations(program: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Every computation's instructions by its name, and the name of the first one that runs."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in program.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(found[2], found[3], found[4]))
    return computations, entry


def _executed(
    computations: dict[str, list[_Instruction]], name: str, times: int
) -> Iterator[tuple[_Instruction, int]]:
    """Every instruction that runs when `name` does, and how often."""
    for instruction in computations.get(name, []):
        yield instruction, times
        if instruction.name == "while":
            body = _BODY.search(instruction.rest)
            if body:
                yield from _executed(computations, body[1], times * _trips(computations, instruction))
            continue
        for called in _CALLED.findall(instruction.rest):
            for one in called.split(","):
                yield from _executed(computations, one.strip().lstrip("%"), times)


def _trips(computations: dict[str, list[_Instruction]], loop: _Instruction) -> int:
    """How often a loop goes round: as the compiler says, or by the one constant that its condition compares with; else once."""
    said = _TRIPS.search(loop.rest)
    if said:
        return int(said[1])
    condition = _CONDITION.search(loop.rest)
    lines = computations.get(condition[1], []) if condition else []
    constants = [
        int(line.rest.partition(")")[0])
        for line in lines
        if line.name == "constant" and line.form.startswith("s32[]")
    ]
    return constants[0] if len(constants) == 1 else 1


def _group(instruction: _Instruction) -> int:
    """How many devices take part with each other; 2, the fewest, where it is not said."""
    found = _GROUPS.search(instruction.rest)
    if found is None:
        return 2
    return int(found[1]) if found[1] else found[2].count(",") + 1


def _size(instruction: _Instruction) -> int:
    """Bytes of the result. A start's holds what goes in as well: of its arrays the last half comes out."""
    arrays = [
        math.prod(int(size) for size in sizes.split(",") if size) * _BITS[kind] // 8
        for kind, sizes in _ARRAY.findall(instruction.form)
        if kind in _BITS
    ]
    if instruction.name.endswith("-start") and len(arrays) > 1 and instruction.name != "all-reduce-start":
        arrays = [size for size in arrays if size > 4][len([size for size in arrays if size > 4]) // 2 :]
    return sum(arrays)
