"""Which images a command looks at: what a training and a compression have in common."""

import dataclasses
from typing import Annotated

from trainer.config.fields import Problems

BAD_IMAGES = ("fatal", "skip", "unchecked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A data set by name."""

    dataset: Annotated[str, "name of the data set"]
    data_dir: Annotated[str, "folder of the data set's files; empty: where it is known to be"] = ""
    bad_images: Annotated[
        str,
        "that cannot be read or have no class are looked for once, before anything else: fatal, or skip, which leaves them out; "
        "unchecked: the first one met ends the run",
    ] = "fatal"

    def check_data(self, found: Problems) -> None:
        """Notes what is wrong with these keys by themselves."""
        fine = self.bad_images in BAD_IMAGES
        found.check(fine, f"bad_images={self.bad_images!r} must be one of {', '.join(BAD_IMAGES)}")
