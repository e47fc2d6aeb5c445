"""Images that cannot be read, or whose label has no class: fatal when they are met, or left out from the start and named.

To leave some out, all are looked at once; what was found is kept, so that the next run starts at once and leaves out the same.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.command import UserError, progress
from trainer.data.encoded import EncodedImages, Reader
from trainer.data.source import ImageSource

_log = logging.getLogger(__name__)
_NAMED = 10  # of those left out, in the log


@dataclasses.dataclass(frozen=True)
class Some:
    """The images of `reader` at `places`."""

    reader: Reader
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        """See `Reader`."""
        return self.reader.read(self.places[index])

    def name(self, index: int) -> str:
        """See `Reader`."""
        return self.reader.name(self.places[index])

    def fingerprint(self) -> bytes:
        """See `Reader`."""
        return self.reader.fingerprint() + repr(self.places).encode()


@dataclasses.dataclass(frozen=True)
class Sound:
    """What becomes of bad images: `skip` leaves them out, else the first one met ends the run; `cache` keeps what was found."""

    skip: bool
    cache: Path

    def of(self, source: ImageSource, classes: Sequence[str]) -> tuple[ImageSource, bytes]:
        """(the source of the images that are kept, what tells its contents from others': names and sizes).

        Raises:
          UserError: for a label without a class, unless such images are left out.
        """
        images = source.images
        assert isinstance(images, EncodedImages)
        content = images.reader.fingerprint()
        if not self.skip:
            return source, content
        bad = self._bad(source, classes, content)
        if not bad:
            return source, content
        named = ", ".join(f"{images.reader.name(place)} ({why})" for place, why in list(bad.items())[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        _log.warning("%d of %d images are left out: %s%s", len(bad), len(images), named, more)
        places = tuple(place for place in range(len(images)) if place not in bad)
        kept = ImageSource(EncodedImages(Some(images.reader, places)), source.labels[list(places)])
        return kept, content + repr(sorted(bad)).encode()

    def _bad(self, source: ImageSource, classes: Sequence[str], content: bytes) -> dict[int, str]:
        """Place → what is wrong with it."""
        key = hashlib.sha256(content + repr(len(classes)).encode()).hexdigest()[:32]
        kept = self.cache / f"{key}.json"
        if kept.is_file():
            return {int(place): why for place, why in json.loads(kept.read_text()).items()}
        found = _looked_at(source, len(classes))
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(found))
        draft.replace(kept)
        return found


def _looked_at(source: ImageSource, classes: int) -> dict[int, str]:
    """Place → what is wrong with it; no classes: labels are none of classes."""
    found: dict[int, str] = {}

    def problem(place: int) -> str | None:
        label = int(source.labels[place]) if classes else 0
        if classes and not 0 <= label < classes:
            return f"label {label}, there are {classes} classes"
        try:
            source.images[place]
        except UserError as error:
            return str(error).partition(": ")[2].partition(";")[0]
        return None

    with ThreadPoolExecutor() as pool, progress(len(source), "images looked at") as bar:
        for place, why in enumerate(pool.map(problem, range(len(source)))):
            if why is not None:
                found[place] = why
            bar.advance()
    return found
