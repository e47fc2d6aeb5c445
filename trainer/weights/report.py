"""What became of every array when weights were loaded."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Report:
    """Arrays by name: ours for what the model has, the file's for what it leaves over.

    `resized` and `created` say behind the name what was done, `unused` the shape. `remarks` are sentences on what a reader should
    know before using the model, such as a head of zeros.
    """

    loaded: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    created: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def summary(self) -> str:
        """A line of counts, then a line for each array that was not simply taken over, then the remarks."""
        groups = {"resized": self.resized, "created": self.created, "unused": self.unused}
        counts = [f"{len(self.loaded)} arrays loaded"]
        counts += [f"{len(names)} {what}" for what, names in groups.items() if names]
        lines = [f"{what}: {line}" for what, names in groups.items() for line in shortened(names)]
        return "\n".join([", ".join(counts), *lines, *self.remarks])


_SHOWN = 8


def shortened(names: tuple[str, ...], shown: int = _SHOWN) -> list[str]:
    """The first of `names`, and how many more there are."""
    more = len(names) - shown
    return [*names[:shown], *([f"and {more} more"] if more > 0 else [])]
