"""What each layer bears: the losses that a search has measured, for people.

KL to the teacher in nats an image after one part of one layer alone was made smaller and repaired (`losses`), against the
fraction of it that was kept.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.compress.losses import Losses, read

_LEAST = 1e-6  # nats: where a logarithmic axis ends


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Losses by layer and kind."""

    losses: Losses

    @staticmethod
    def of(path: Path) -> "Sensitivity | None":
        """What lies at `path`, if anything does: a stated shape and a uniform cut are found without."""
        return Sensitivity(read(json.loads(path.read_text())["losses"])) if path.is_file() else None

    def to_json(self) -> list[dict[str, Any]]:
        """One plain object for each measured cut, from the input up: layer, kind, kept, of (how many), divergence in nats."""
        return [
            {"layer": layer, "kind": kind, "kept": kept, "of": whole, "divergence": loss}
            for layer, kind, whole, points in self._curves()
            for kept, loss in points
        ]

    def plot(self, path: Path) -> None:
        """Draws KL against the fraction kept as PNG: a panel for each kind, a line for each layer."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        kinds = list(dict.fromkeys(kind for _, kind, _, _ in self._curves()))
        figure, panels = pyplot.subplots(
            1,
            len(kinds),
            figsize=(2.8 * len(kinds) + 1, 3.4),
            squeeze=False,
            sharey=True,
            layout="constrained",
        )
        colours = pyplot.get_cmap("viridis")
        for kind, panel in zip(kinds, panels[0]):
            for layer, own, whole, points in self._curves():
                if own == kind:
                    line = [(100 * kept / whole, max(loss, _LEAST)) for kept, loss in points]
                    shade = colours(layer / max(len(self.losses) - 1, 1))
                    panel.plot(*zip(*line), marker="o", markersize=4, color=shade, label=f"layer {layer}")
            panel.set(title=kind.replace("_", " "), xlabel="kept, %", yscale="log")
            panel.grid(alpha=0.3)
        panels[0][0].set_ylabel("KL to the teacher, nats")
        lines = {line.get_label(): line for panel in panels[0] for line in panel.get_lines()}
        figure.legend(lines.values(), lines, loc="outside right upper", fontsize=8)
        figure.savefig(path, dpi=120)
        pyplot.close(figure)

    def _curves(self) -> Iterator[tuple[int, str, int, list[tuple[int, float]]]]:
        """(layer, kind, whole size, (kept, loss) of every measured size, the least first)."""
        layers = collections.Counter[str]()  # a stem's units are counted on their own, and the stream is one
        for curves in self.losses:
            what = next((kind for kind in ("stem", "width") if kind in curves), "block")
            for kind, curve in curves.items():
                points = list(zip(curve.sizes[:-1], curve.losses[:-1], strict=True))
                yield layers[what], kind, curve.sizes[-1], points
            layers[what] += 1
