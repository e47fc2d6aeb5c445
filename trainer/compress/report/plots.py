"""The plots of a report as PNG bytes, for light and for dark paper."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

from trainer.compress.report.tables import Facts, cost_name


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours: of the paper, of what is written on it, of what is shown, and of what matters."""

    paper: str
    ink: str
    faint: str
    shown: str
    marked: str


LIGHT = Theme("#ffffff", "#1f2430", "#c9ced8", "#4c78a8", "#d1495b")
DARK = Theme("#1b1f27", "#e4e7ec", "#444b59", "#7fb2e5", "#ff8a80")


def _figure(theme: Theme, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.8, height), layout="constrained", facecolor=theme.paper)
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.ink)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
    axes.grid(color=theme.faint, alpha=0.5, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png", facecolor=figure.get_facecolor())
    pyplot.close(figure)
    return buffer.getvalue()


def _label(axes: Any, theme: Theme, across: str, up: str) -> None:
    axes.set_xlabel(across, color=theme.ink)
    axes.set_ylabel(up, color=theme.ink)


def _legend(axes: Any, theme: Theme) -> None:
    axes.legend(facecolor=theme.paper, edgecolor=theme.faint, labelcolor=theme.ink)


_AXES = {"macs": (1e6, "MACs, millions"), "params": (1e6, "parameters, millions")}


def pareto(facts: Facts, theme: Theme) -> bytes:
    """Every candidate by what it costs and how far it is from the teacher; the front, and what was chosen."""
    from matplotlib import ticker

    figure, axes = _figure(theme, 4.0)
    rows = facts["candidates"]
    front = [row for row in rows if row["front"]]
    others = [row for row in rows if not row["front"]]
    scale, across = _AXES.get(facts["cost"], (1.0, cost_name(facts)))
    axes.scatter(*_points(others, scale), color=theme.faint, s=26, label="rejected")
    axes.plot(
        *_points(front, scale), color=theme.shown, marker="o", markersize=5, linewidth=1.4, label="front"
    )
    chosen = [row for row in rows if row["chosen"]]
    axes.scatter(*_points(chosen, scale), color=theme.marked, marker="*", s=190, zorder=3, label="chosen")
    if min(row["divergence"] for row in rows) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    _label(axes, theme, across, "KL to the teacher, nats")
    _legend(axes, theme)
    return _png(figure)


def _points(rows: list[Facts], scale: float) -> tuple[list[float], list[float]]:
    return [row["cost"] / scale for row in rows], [row["divergence"] for row in rows]


def accuracy(facts: Facts, theme: Theme) -> bytes:
    """Top-1 with its 95 % interval at every stage."""
    rows = facts["accuracy"]
    figure, axes = _figure(theme, 0.9 + 0.5 * len(rows))
    for place, row in enumerate(reversed(rows)):
        top1, low, high = (100 * row[name] for name in ("top1", "low", "high"))
        last = place == 0
        axes.errorbar(
            top1,
            place,
            xerr=[[top1 - low], [high - top1]],
            fmt="o",
            capsize=4,
            color=theme.marked if last else theme.shown,
        )
        axes.annotate(
            f"{top1:.2f}",
            (top1, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=theme.ink,
            fontsize=9,
        )
    axes.set_yticks(range(len(rows)), [row["stage"] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.3)
    _label(axes, theme, f"top-1 on {rows[0]['examples']:,} validation images, %", "")
    return _png(figure)


def plan(facts: Facts, theme: Theme) -> bytes:
    """How much of each layer of the teacher stays: attention's dims and the MLP's neurons."""
    kept = {row["source"]: row for row in facts["plan"]}
    layers = sorted([*kept, *facts["layers_removed"]])
    figure, axes = _figure(theme, 3.0)
    attention = [_attention(kept[layer]) if layer in kept else 0.0 for layer in layers]
    neurons = [_share(*kept[layer]["mlp_dim"]) if layer in kept else 0.0 for layer in layers]
    axes.bar(
        [layer - 0.2 for layer in layers], attention, 0.38, color=theme.shown, label="attention, heads × dims"
    )
    axes.bar([layer + 0.2 for layer in layers], neurons, 0.38, color=theme.marked, label="MLP neurons")
    axes.set_xticks(layers)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 25))
    _label(axes, theme, "layer of the teacher", "stays, %")
    axes.legend(
        facecolor=theme.paper,
        edgecolor=theme.faint,
        labelcolor=theme.ink,
        ncols=2,
        loc="upper center",
        fontsize=8,
    )
    return _png(figure)


def _share(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _attention(row: Facts) -> float:
    (heads, all_heads), (dim, all_dims) = (
        row["num_heads"],
        [sum(pair) for pair in zip(row["qk_dim"], row["v_dim"])],
    )
    return _share(heads * dim, all_heads * all_dims)


PLOTS: dict[str, Callable[[Facts, Theme], bytes]] = {"pareto": pareto, "accuracy": accuracy, "plan": plan}
TITLES = {
    "pareto": "Candidates",
    "accuracy": "Accuracy by stage",
    "plan": "What stays of each layer",
    "sensitivity": "Sensitivity",
}
