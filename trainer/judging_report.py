"""An evaluation to look at: `evaluation.json`, `confusion.csv` and `evaluation.png` in a folder."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.source import Array
from trainer.judging import Table

_NAMED = 40  # classes whose names fit on an axis


def write(
    folder: Path, result: dict[str, Any], classes: list[Table], bins: list[Table], table: Array
) -> None:
    """Writes the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**result, "classes": classes, "reliability": bins}
    (folder / "evaluation.json").write_text(json.dumps(whole, indent=1) + "\n")
    names = [row["class"] for row in classes]
    with (folder / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label \\ answer", *names])
        writer.writerows([name, *row] for name, row in zip(names, table.tolist(), strict=True))
    _draw(folder / "evaluation.png", result, names, bins, table)


def _draw(path: Path, result: dict[str, Any], names: list[str], bins: list[Table], table: Array) -> None:
    """Confusions as shares of each class, and confidence against accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    image = left.imshow(
        table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="viridis", vmin=0, vmax=1
    )
    figure.colorbar(image, ax=left, label="share of the label's examples")
    left.set(title=f"top-1 {result['top1']:.2%} of {result['examples']:,}", xlabel="answer", ylabel="label")
    if len(names) <= _NAMED:
        left.set_xticks(range(len(names)), names, rotation=90)
        left.set_yticks(range(len(names)), names)
    right.plot([0, 1], [0, 1], color="grey", linewidth=1)
    largest = max(row["examples"] for row in bins)
    sizes = [20 + 180 * row["examples"] / largest for row in bins]
    right.scatter([row["confidence"] for row in bins], [row["accuracy"] for row in bins], s=sizes)
    right.set(
        title=f"calibration error {result['calibration_error']:.4f}",
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    figure.savefig(path, dpi=110)
