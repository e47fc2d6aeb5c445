"""What each layer bears: KL to the teacher after one kind of cut of one layer alone, against the fraction kept.

A unit that is cut is set to zero in the teacher's own shapes, which is the same function as without it, so that nothing is
compiled for a cut; the weights that read the layer's units are then fitted again to what the branch added before. The
teacher's stream up to the layer is shared. The residual width belongs to all layers and is cut by rotation, without a fit.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from serving.command import progress
from trainer.compress import streams, width
from trainer.compress.allocate import Rounding, best
from trainer.compress.moments import Array, Moments
from trainer.compress.scores import LayerScores, Scores, order_dims
from trainer.compress.search import Teacher, divergence
from trainer.models.build import Params
from trainer.models.vit import head_names

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
_ATTENTION = ("heads", "query_key", "value")
_HELD_OUT = 4  # one image in four judges, the others repair


@dataclasses.dataclass(frozen=True)
class Point:
    """One cut: the block ("all" for the width), the kind, the units kept of how many, and KL in nats an image."""

    layer: str
    kind: str
    kept: int
    of: int
    divergence: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """All cuts that were tried, from the input up."""

    points: tuple[Point, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [dataclasses.asdict(point) for point in self.points]

    def markdown(self) -> str:
        """A table with one cut in a row."""
        rows = ["| layer | kind | kept | KL, nats |", "| --- | --- | --- | --- |"]
        rows += [f"| {p.layer} | {p.kind} | {p.kept} / {p.of} | {p.divergence:.3g} |" for p in self.points]
        return "\n".join(rows) + "\n"

    def plot(self, path: Path) -> None:
        """Draws KL against the fraction kept as PNG: one panel for each kind, one line for each layer."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        kinds = list(dict.fromkeys(point.kind for point in self.points))
        figure, panels = pyplot.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.2), squeeze=False)
        for kind, panel in zip(kinds, panels[0]):
            own = [point for point in self.points if point.kind == kind]
            for layer in dict.fromkeys(point.layer for point in own):
                line = [(p.kept / p.of, p.divergence) for p in own if p.layer == layer]
                panel.plot(*zip(*line), marker="o", label=layer)
            panel.set(title=kind, xlabel="fraction kept", ylabel="KL, nats")
            panel.legend(fontsize=6)
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def sensitivity(
    teacher: Teacher,
    scores: Scores,
    rounding: Rounding,
    fractions: tuple[float, ...] = FRACTIONS,
    images: int = 256,
    store: Path | None = None,
) -> Sensitivity:
    """Cuts and repairs each layer alone on up to `images` calibration images; one in four judges.

    `store` is a JSON file of finished layers, replaced whole after each: an interrupted call goes on from it, and what other
    weights, images, scores or arguments left there is ignored.
    """
    few = dataclasses.replace(teacher, images=teacher.images[:images])
    key = _key(few, scores, rounding, fractions)
    done = _read(store, key)
    ordered = order_dims(few.model, few.params, few.images, few.how.batch)
    stream = streams.embed(few.model, ordered, few.images, few.how.batch)
    wanted = streams.logits(few.model, few.params, few.images[::_HELD_OUT], few.how.batch)
    judge = _Judge(few, ordered, wanted)
    with progress(len(few.model.blocks) + 1, "sensitivity") as bar:
        for index in range(len(few.model.blocks)):
            after, found = judge.layer(
                index, stream, scores[str(index)], rounding, fractions, str(index) in done
            )
            done.setdefault(str(index), [dataclasses.asdict(point) for point in found])
            stream = after
            _write(store, key, done)
            bar.advance()
        if "all" not in done:
            done["all"] = [dataclasses.asdict(point) for point in judge.width(fractions)]
            _write(store, key, done)
        bar.advance()
    return Sensitivity(tuple(Point(**point) for points in done.values() for point in points))


class _Judge:
    """Cuts of one teacher, whose head dims are ordered, judged on the same images."""

    def __init__(self, teacher: Teacher, ordered: Params, wanted: Array) -> None:
        self._teacher, self._ordered, self._wanted = teacher, ordered, wanted

    def layer(
        self,
        index: int,
        stream: Array,
        scores: LayerScores,
        rounding: Rounding,
        fractions: tuple[float, ...],
        known: bool,
    ) -> tuple[Array, list[Point]]:
        """The teacher's stream after block `index`, and its points unless they are known."""
        model, size = self._teacher.model, self._teacher.how.batch
        block, own = model.blocks[index], self._ordered["blocks"][str(index)]
        start, found = stream, []
        parts = [(streams.attention_branch, "attention", _ATTENTION)] if block.num_heads else []
        parts += [(streams.mlp_branch, "mlp", ("mlp",))] if block.mlp_dim else []
        for branch_of, part, kinds in parts:
            branch = branch_of(model, block)
            after = streams.add_branch(branch, own, stream, size)
            for kind in () if known else kinds:
                of = scores[kind].shape[-1]
                step = {"mlp": rounding.mlp, "heads": 1}.get(kind, rounding.head_dim)
                for kept in _sizes(of, step, fractions):
                    mask = _mask(kind, scores[kind], kept)
                    new = _refit(branch, own, part, mask, kind, stream, after - stream, self._teacher)
                    cut = streams.add_branch(branch, new, stream[::_HELD_OUT], size)
                    if part == "attention" and block.mlp_dim:
                        cut = streams.add_branch(streams.mlp_branch(model, block), own, cut, size)
                    found.append(Point(str(index), kind, kept, of, self._loss(cut, index + 1)))
            stream = after
        if not known:
            found.append(Point(str(index), "block", 0, 1, self._loss(start[::_HELD_OUT], index + 1)))
        return stream, found

    def width(self, fractions: tuple[float, ...]) -> list[Point]:
        """The points of the residual width."""
        model, params, how = self._teacher.model, self._teacher.params, self._teacher.how
        directions = width.principal_directions(model, params, self._teacher.images, how.batch)
        found = []
        for kept in sorted({max(2, round(model.width * fraction)) for fraction in fractions}):
            cut = width.narrow(model, params, width.projection(directions, kept))
            said = streams.logits(*cut, self._teacher.images[::_HELD_OUT], how.batch)
            found.append(Point("all", "width", kept, model.width, divergence(self._wanted, said)))
        return found

    def _loss(self, stream: Array, start: int) -> float:
        model, size = self._teacher.model, self._teacher.how.batch
        for index, block in list(enumerate(model.blocks))[start:]:
            own = self._ordered["blocks"][str(index)]
            if block.num_heads:
                stream = streams.add_branch(streams.attention_branch(model, block), own, stream, size)
            if block.mlp_dim:
                stream = streams.add_branch(streams.mlp_branch(model, block), own, stream, size)
        read = streams.features(model, self._ordered, stream, size)
        names = head_names(model)
        said = [streams.said_by(self._ordered[name], read[:, i]) for i, name in enumerate(names)]
        return divergence(self._wanted, np.mean(said, axis=0))


def _sizes(of: int, step: int, fractions: tuple[float, ...]) -> list[int]:
    return sorted({min(of, max(min(step, of), round(of * part / step) * step)) for part in fractions})


def _mask(kind: str, scores: Array, kept: int) -> Array:
    """1 for what stays: the best units, or the first dims of every head."""
    mask = np.zeros(scores.shape[-1], np.float32)
    mask[list(best(scores, kept)) if kind in ("mlp", "heads") else slice(kept)] = 1
    return mask


def _refit(
    branch: streams.Branch,
    own: Params,
    part: str,
    mask: Array,
    kind: str,
    stream: Array,
    wanted: Array,
    teacher: Teacher,
) -> Params:
    """The block's parameters with the masked units at zero and the layer that reads them fitted to `wanted`."""
    if kind == "query_key":
        query = {name: value * mask for name, value in own[part]["query"].items()}
        own = {**own, part: {**own[part], "query": query}}
    reader, tap = ("fc2", "hidden") if part == "mlp" else ("out", "heads")
    along = {"heads": mask[:, None], "query_key": np.ones(1, np.float32)}.get(kind, mask)
    moments, fitted = Moments(), np.arange(len(stream)) % _HELD_OUT != 0
    stream, wanted = stream[fitted], wanted[fitted]
    for rows in streams.batches(len(stream), teacher.how.batch):
        units = branch(own, stream[rows])[1][tap] * along
        moments.add(units.reshape(*units.shape[:2], -1), wanted[rows])
    moments.require_enough(f"the {kind} of a layer")
    kernel, bias = moments.ridge(teacher.how.ridge)
    old = own[part][reader]["kernel"]
    # The ridge gives no weight to units without variance, so the reader ignores what is masked.
    return {**own, part: {**own[part], reader: {"kernel": kernel.reshape(old.shape), "bias": bias}}}


def _key(teacher: Teacher, scores: Scores, rounding: Rounding, fractions: tuple[float, ...]) -> str:
    digest = hashlib.sha256(repr((teacher.model, teacher.how, rounding, fractions)).encode())
    for leaf in jax.tree.leaves((teacher.params, scores, teacher.images)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _read(store: Path | None, key: str) -> dict[str, list[dict[str, Any]]]:
    if store is None or not store.exists():
        return {}
    kept = json.loads(store.read_text())
    return dict(kept["layers"]) if kept["key"] == key else {}


def _write(store: Path | None, key: str, done: dict[str, list[dict[str, Any]]]) -> None:
    if store is not None:
        draft = store.with_suffix(".draft")
        draft.write_text(json.dumps({"key": key, "layers": done}))
        os.replace(draft, store)
