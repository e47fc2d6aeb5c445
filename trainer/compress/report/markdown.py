"""The report as a Markdown page."""

from collections.abc import Sequence

from trainer.compress.report.tables import Facts, Table, notes, tables, verdict


def text(facts: Facts, plots: Sequence[str]) -> str:
    """The page; `plots` are the names of PNG files beside it."""
    parts = ["# Compression", verdict(facts), facts["why"]]
    parts += [_table(table) for table in tables(facts)]
    parts += ["\n".join(f"![{name}]({name}.png)" for name in plots), *notes(facts)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return f"## {table.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
