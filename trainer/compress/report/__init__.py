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
    light, dark = (
        {name: draw(facts, theme) for name, draw in plots.PLOTS.items()}
        for theme in (plots.LIGHT, plots.DARK)
    )
    for name, png in light.items():
        (workdir / f"{name}.png").write_bytes(png)
    if record.sensitivity is not None:
        record.sensitivity.plot(workdir / "sensitivity.png")
        light["sensitivity"] = (workdir / "sensitivity.png").read_bytes()
    write_text(workdir / "report.md", markdown.text(facts, list(light)))
    write_text(workdir / "report.html", page.html(facts, light, dark))
