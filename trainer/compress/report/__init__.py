"""What a compression did and why, for people and for programs: report.json, and from it report.md, report.html and the plots."""

import json
from pathlib import Path

from trainer.compress.report import markdown, page, plots
from trainer.compress.report.record import Record
from trainer.compress.stages import write_text


def write(workdir: Path, record: Record, seconds: dict[str, float]) -> None:
    """Writes the report into `workdir`; `seconds` is what each stage took."""
    facts = {**record.to_json(), "seconds": seconds}
    write_text(workdir / "report.json", json.dumps(facts, indent=1) + "\n")
    names = []
    for name, draw in plots.PLOTS.items():
        (workdir / f"{name}.png").write_bytes(draw(facts, plots.LIGHT))
        names.append(name)
    if record.sensitivity is not None:
        record.sensitivity.plot(workdir / "sensitivity.png")
    write_text(workdir / "report.md", markdown.text(facts, names))
    write_text(workdir / "report.html", page.html(facts, workdir))
