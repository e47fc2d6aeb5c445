"""Tables of names: our modules on the left, another library's on the right, read in both directions of a transfer.

A left side is a name of ours with `*` for every number in it; it names a module, whose leaves keep their own names, or one array.
A right side may have `{i}` and `{j}`, the numbers in order, and `{i1}` and `{j1}`, the same counted from 1.
"""

import re

Table = dict[str, str]


def translate(table: Table, name: str) -> tuple[str, str] | None:
    """The other library's module and our leaf ("" where the table names the array itself); None where `table` has no such name."""
    numbers = [int(number) for number in re.findall(r"(?<=/)\d+(?=/)", name)]
    pattern = re.sub(r"(?<=/)\d+(?=/)", "*", name)
    module, _, leaf = pattern.rpartition("/")
    if pattern in table:
        template, leaf = table[pattern], ""
    elif module in table:
        template = table[module]
    else:
        return None
    values = dict(zip("ij", numbers))
    values |= {f"{key}1": number + 1 for key, number in values.items()}
    return template.format(**values), leaf


def inputs_of(name: str) -> int:
    """How many leading axes of our kernel `name` are inputs."""
    return 2 if name.endswith("attention/out/kernel") else 1


def is_convolution(name: str) -> bool:
    """Whether our array `name` is the kernel of a convolution."""
    return name.endswith("kernel") and ("patch/" in name or "stem/" in name)
