"""The report as one HTML page that needs nothing beside it: style and plots are in it. Light and dark, wide and narrow."""

import base64
from collections.abc import Mapping
from html import escape

from trainer.compress.report import plots
from trainer.compress.report.tables import Facts, Table, notes, tables, verdict

_STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --card: #ffffff; --ink: #1f2430; --soft: #5d6675; --line: #dfe3ea;
  --good: #1b7f4d; --bad: #b3261e; --mark: #fdf1d8; }
@media (prefers-color-scheme: dark) { :root { --paper: #12151b; --card: #1b1f27; --ink: #e4e7ec; --soft: #9aa4b5;
  --line: #323947; --good: #5fd49a; --bad: #ff8a80; --mark: #3a3320; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 0 0 .6rem; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.1rem;
  margin: 0 0 1rem; }
p { margin: .3rem 0; overflow-wrap: anywhere; } .soft { color: var(--soft); font-size: .9rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin-top: .8rem; }
.fact { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .7rem; }
.fact b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td { white-space: nowrap; }
td:last-child { white-space: normal; min-width: 10rem; }
tr.marked td { background: var(--mark); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18.5rem), 1fr)); gap: 0 1rem; }
img { width: 100%; max-width: 36rem; height: auto; display: block; margin: 0 auto; border-radius: .4rem; }
""".strip()


def html(facts: Facts, light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
    """The page; `light` and `dark` hold PNG plots by name, for either paper. One that is not in `dark` is shown as it is."""
    drawings = "".join(_plot(name, png, dark.get(name)) for name, png in light.items())
    body = [_head(facts), f'<div class="plots">{drawings}</div>']
    body += [_table(table) for table in tables(facts)]
    remarks = "".join(f"<p>{escape(note)}</p>" for note in notes(facts))
    body.append(f'<section class="soft"><h2>Notes</h2>{remarks}</section>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Compression</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(facts: Facts) -> str:
    tone = {True: "good", False: "bad", None: "soft"}[facts["within_budget"]]
    cards = "".join(
        f'<div class="fact">{escape(name)}<b>{escape(value)}</b><span class="soft">{escape(more)}</span></div>'
        for name, value, more in _cards(facts)
    )
    return (
        f'<header><h1>Compression of {escape(facts["teacher"])}</h1><p class="{tone}">{escape(verdict(facts))}</p>'
        f'<p>{escape(facts["why"])}</p><div class="facts">{cards}</div></header>'
    )


def _cards(facts: Facts) -> list[tuple[str, str, str]]:
    """Name, value and what it means of the figures that most people look for."""
    found = []
    for row in facts["sizes"]:
        value = f"{row['actual']:.3g} MiB" if row["unit"] else _short(row["actual"])
        less = f"{1 - row['actual'] / row['teacher']:.1%} less than the teacher"
        found.append(({"params": "parameters", "macs": "MACs"}.get(row["name"], row["name"]), value, less))
    shipped, teacher = (facts["latency"][name] for name in ("latency", "teacher_latency"))
    if shipped:
        faster = (
            f"{teacher['p50_ms'] / shipped['p50_ms']:.1f} times as fast as the teacher" if teacher else ""
        )
        found.append((f"p50, batch {shipped['batch']}", f"{shipped['p50_ms']:.3g} ms", faster))
    stages = facts["tested"] or facts["accuracy"]
    first, last = stages[0], stages[-1]
    points = f"{100 * (last['top1'] - first['top1']):+.2f} points against the teacher"
    images = "test" if facts["tested"] else "validation"
    return [*found, (f"top-1, {last['stage']}, {images}", f"{last['top1']:.2%}", points)]


def _short(value: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _plot(name: str, light: bytes, dark: bytes | None) -> str:
    title = escape(plots.TITLES[name])
    other = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">' if dark else ""
    image = f'<img alt="{title}" src="{_data(light)}">'
    return f"<section><h2>{title}</h2><picture>{other}{image}</picture></section>"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td>{escape(cell.strip('*'))}</td>" for cell in row)
        rows.append(f'<tr class="marked">{cells}</tr>' if index == table.marked else f"<tr>{cells}</tr>")
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>{escape(table.title)}</h2><div class="scroll">{inner}</div></section>'
