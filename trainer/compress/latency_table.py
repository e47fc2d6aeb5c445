"""What a model's latency is before it is measured: a sum over its blocks, from a table of few measured ones.

A block is two branches, and each branch's arithmetic is linear in every one of its sizes: width, heads and dims per head, or width
and neurons. So a small grid of sizes is measured and read between its points linearly in each size; the points inside it catch
where the runtime is not linear. Four equal branches are timed in the model's own embedding and head, and what these take alone
is subtracted: what one call costs is not counted once a block. A stem's time is read by its arithmetic, between few cuts of it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from trainer.compress.allocate import GROUPS_STEP, Rounding, least_block
from trainer.compress.cells import groups
from trainer.compress.latency import Timer
from trainer.description import Block, ViT, block_macs, macs, with_groups, without_stem

_DEEP = 4  # equal branches in one measured model
_STEM_PARTS = (4, 2, 1)  # fractions of its groups that a stem is measured with
Axes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The sizes that are measured."""

    model: ViT  # whose blocks are replaced; of its stem only the cells that it makes
    widths: tuple[int, ...]
    attention: Axes  # heads, query/key dims, value dims
    mlp: Axes  # neurons
    stems: tuple[ViT, ...] = ()  # the teacher's stem at few sizes in front of no block, the smallest first

    @property
    def attention_axes(self) -> Axes:
        """All axes of an attention branch."""
        return (self.widths, *self.attention)

    @property
    def mlp_axes(self) -> Axes:
        """All axes of an MLP branch."""
        return (self.widths, *self.mlp)

    def bare(self, width: int) -> ViT:
        """Embedding and head alone."""
        return dataclasses.replace(self.model, width=width)

    def deep(self, width: int, block: Block) -> ViT:
        """Some equal blocks between embedding and head."""
        return dataclasses.replace(self.model, width=width, blocks=(block,) * _DEEP)

    def models(self) -> list[ViT]:
        """Everything that the table needs measured, in a fixed order without repetition."""
        attention = [self.deep(at[0], Block(at[1], at[2], at[3], 0)) for at in _points(self.attention_axes)]
        mlp = [self.deep(width, Block(0, 0, 0, neurons)) for width, neurons in _points(self.mlp_axes)]
        return list(dict.fromkeys([*map(self.bare, self.widths), *attention, *mlp, *self.stems]))


def grid(teacher: ViT, rounding: Rounding) -> Grid:
    """A grid over every cut of `teacher`."""
    least = [least_block(block, rounding) for block in teacher.blocks]

    def sizes(name: str, parts: Sequence[int]) -> tuple[int, ...]:
        most = max(getattr(block, name) for block in teacher.blocks)
        smallest = [getattr(block, name) for block in least if getattr(block, name)]
        between = [-(-most // part) for part in parts]
        return tuple(sorted({size for size in (*smallest, *between, most) if size and size >= min(smallest)}))

    widths = {-(-teacher.width // part) for part in (4, 2, 1)}
    return Grid(
        _without_blocks(teacher),
        tuple(sorted(widths)),
        (sizes("num_heads", (2,)), sizes("qk_dim", ()), sizes("v_dim", ())),
        (sizes("mlp_dim", (4, 2)),),
        _stems(teacher, min(widths)),
    )


def _stems(teacher: ViT, width: int) -> tuple[ViT, ...]:
    if not teacher.stem or not teacher.stem.num_units:
        return ()
    found = []
    for part in _STEM_PARTS:
        left = tuple(max(has // part, min(GROUPS_STEP, has)) for has in groups(teacher.stem))
        alone = dataclasses.replace(teacher, blocks=(), width=width, norm_eps=1e-6)
        found.append(with_groups(alone, left))
    return tuple(found)


def _without_blocks(model: ViT) -> ViT:
    """The model as far as a block's time depends on it: a stem's cells are its images."""
    return dataclasses.replace(without_stem(model), blocks=(), norm_eps=1e-6)


class CostTable:
    """The latency of any cut of one teacher as a sum over its blocks; exact where it was measured alone."""

    def __init__(self, sizes: Grid, timer: Timer) -> None:
        models = sizes.models()
        measured_ms = {model: timing.p50_ms for model, timing in zip(models, timer(models), strict=True)}
        self._grid = sizes
        self._bare = monotone(np.array([measured_ms[sizes.bare(width)] for width in sizes.widths]))
        bare_ms = dict(zip(sizes.widths, self._bare, strict=True))

        def values(axes: Axes, block: Callable[..., Block]) -> np.ndarray:
            each = [
                (measured_ms[sizes.deep(width, block(*rest))] - bare_ms[width]) / _DEEP
                for width, *rest in _points(axes)
            ]
            return monotone(np.array(each).reshape([len(axis) for axis in axes]))

        self._attention = values(
            sizes.attention_axes, lambda heads, query_key, value: Block(heads, query_key, value, 0)
        )
        self._mlp = values(sizes.mlp_axes, lambda neurons: Block(0, 0, 0, neurons))
        narrowest_ms = bare_ms[sizes.widths[0]]
        self._stems = [macs(one) for one in sizes.stems]
        self._stems_ms = monotone(np.array([measured_ms[one] - narrowest_ms for one in sizes.stems]))
        self._block_ms = functools.cache(self._read)

    def __call__(self, model: ViT) -> float:
        """Milliseconds, up to what the whole adds: `correction.Line` knows that."""
        bare = between((self._grid.widths,), self._bare, (model.width,))
        return (
            bare
            + self._stem_ms(model)
            + sum(
                self._block_ms(model.width, dataclasses.replace(block, merge=0))
                * _share(model, block, tokens)
                for block, tokens in zip(model.blocks, model.tokens_by_block)
            )
        )

    def _stem_ms(self, model: ViT) -> float:
        """The time of the model's stem, by its arithmetic; of one without units only its cells are known, the same for all cuts."""
        if not self._stems:
            return 0.0
        alone = dataclasses.replace(model, blocks=(), width=self._grid.widths[0])
        return float(np.interp(macs(alone), self._stems, self._stems_ms))

    def _read(self, width: int, block: Block) -> float:
        total = 0.0
        if block.num_heads:
            sizes = (width, block.num_heads, block.qk_dim, block.v_dim)
            total += between(self._grid.attention_axes, self._attention, sizes)
        if block.mlp_dim:
            total += between(self._grid.mlp_axes, self._mlp, (width, block.mlp_dim))
        return total


def _share(model: ViT, block: Block, tokens: int) -> float:
    """The arithmetic of a block where some tokens were merged, and it merges some, as a fraction of that on all tokens."""
    if tokens == model.num_tokens and not block.merge:
        return 1.0
    whole = block_macs(dataclasses.replace(block, merge=0), model.width, model.num_tokens)
    return block_macs(block, model.width, tokens, model.num_prefix) / max(whole, 1)


def _points(axes: Axes) -> list[tuple[int, ...]]:
    """All points of a grid; none where an axis is empty, as for a teacher without attention."""
    return list(itertools.product(*axes))


def monotone(values: np.ndarray) -> np.ndarray:
    """`values` without noise that would make a larger branch faster, or take less than no time."""
    values = np.maximum(values, 0)
    for axis in range(values.ndim):
        values = np.maximum.accumulate(values, axis=axis)
    return values


def between(axes: Axes, values: np.ndarray, point: Sequence[int]) -> float:
    """`values` at `point`, linear in each axis between its sizes, and what the outermost size has outside of them."""
    for axis, at in zip(axes, point, strict=True):
        place = float(np.interp(at, axis, np.arange(len(axis))))
        low = min(int(place), len(axis) - 1)
        high = min(low + 1, len(axis) - 1)
        values = values[low] + (place - low) * (values[high] - values[low])
    return float(values)
