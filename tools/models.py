"""Every model by name: parameters, size in each precision, and multiply-accumulates. Computed from descriptions; needs no weights.

python -m tools.models [--name=Ti/16] [--image_sizes=224,384] [--classes=1000,21843]
"""

import sys

from absl import flags

from serving import command
from serving.command import UserError
from trainer.description import Model, TwoTowers, macs, named, param_count, variant_names

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_OURS = (
    "ViT-digits",
    "ViT-fashion",
    "ViT-fashion_4",
    "ViT-fashion_4-large",
)  # made for small pictures: sizes at 224 px say nothing of them


def main(argv: list[str]) -> dict[str, object]:
    """Prints the table to stderr; the result holds the same rows for programs."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "name", "", "One model, in any usual spelling; all when not given.", flag_values=values
    )
    flags.DEFINE_list("image_sizes", ["224", "384"], "Sides of square images, in pixels.", flag_values=values)
    flags.DEFINE_list("classes", ["1000", "21843"], "Sizes of the classifier.", flag_values=values)
    command.require_usage(command.parse_flags(values, argv), True, "")
    sizes, classes = (_positive(name, values[name].value) for name in ("image_sizes", "classes"))
    if values["name"].value:
        named(
            values["name"].value, (sizes[0], sizes[0]), 3, classes[0]
        )  # refuses an unknown one with the nearest
        names = [values["name"].value]
    else:
        names = [name for name in variant_names() if name not in _OURS]
    rows = [_row(name, sizes, classes) for name in names]
    print(_table(rows), file=sys.stderr)
    return {"models": rows}


def _positive(flag: str, texts: list[str]) -> list[int]:
    """The numbers of a list flag.

    Raises:
      UserError: when there is none, or one is no positive integer.
    """
    if not texts or not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
        raise UserError(f"--{flag}={','.join(texts)}: give positive whole numbers, such as 224,384")
    return [int(text) for text in texts]


def _row(name: str, sizes: list[int], classes: list[int]) -> dict[str, object]:
    first = named(name, (sizes[0], sizes[0]), 3, classes[0])
    row: dict[str, object] = {"model": name, "params": param_count(first)}
    # A LiT pair has embeddings in place of classes.
    for count in classes[:1] if isinstance(first, TwoTowers) else classes:
        params = param_count(named(name, (sizes[0], sizes[0]), 3, count))
        for precision, size in _BYTES.items():
            row[f"mib_{precision}_{count}"] = round(params * size / 2**20, 1)
    for side in sizes:
        row[f"gmacs_{side}"] = round(_gmacs(named(name, (side, side), 3, classes[0])), 2)
    return row


def _gmacs(model: Model) -> float:
    return macs(model) / 1e9


def _table(rows: list[dict[str, object]]) -> str:
    """Columns as wide as their widest entry; names to the left, numbers to the right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    texts = [[_text(row.get(column)) for column in columns] for row in rows]
    titles = [column.replace("_", " ") for column in columns]
    widths = [max(len(text) for text in column) for column in zip(titles, *texts, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [titles, *texts]
    ]
    return "\n".join(
        [*lines, "", "mib PRECISION CLASSES: weights alone. gmacs SIDE: one image (and one text, for LiT)."]
    )


def _text(value: object) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.2f}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    command.run_command(main)
