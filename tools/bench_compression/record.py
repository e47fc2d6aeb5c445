"""What a benchmark leaves: a JSON record with machine and command, a Markdown table, a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools import machine


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; cells are shown as `str` shows them."""
    lines = [list(heads), ["---"] * len(heads), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(
    name: str, results: Path, workdir: Path, command: str, found: Mapping[str, Any], text: str
) -> dict[str, Any]:
    """Writes RESULTS/compression_NAME.json and WORKDIR/NAME.md; returns what the JSON holds, and where it lies.

    `text` is the table with its remarks; machine and command are put below it.
    """
    recorded = {"benchmark": name, "command": command, "machine": machine.facts(), **found}
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"compression_{name}.json"
    path.write_text(json.dumps(recorded, indent=2) + "\n")
    foot = f"`{command}`\n\nMachine: {machine.text()}."
    (workdir / f"{name}.md").write_text(f"{text}\n\n![{name}]({name}.png)\n\n{foot}\n")
    return {**recorded, "results": str(path), "report": str(workdir / f"{name}.md")}


Point = tuple[float, float, float, float]  # x, y, and the ends of y's interval


def plot(
    path: Path, series: Mapping[str, Sequence[Point]], labels: tuple[str, str], line: tuple[str, float]
) -> None:
    """Each series as points with intervals, joined; `line` is a level to compare with, and its name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in series.items():
        x, y, low, high = zip(*sorted(points), strict=True)
        around = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.errorbar(x, y, yerr=around, fmt="o-", capsize=3, label=name)
    axes.axhline(line[1], linestyle="--", color="grey", label=line[0])
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
