"""Images that cannot be read, or whose label has no class: all named before anything else is done, or left out and named.

All images are looked at once; what was found is kept, so that the next run starts at once and leaves out the same.
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
from serving.preprocess import ImageError
from trainer.data.encoded import EncodedImages, Reader, decoded
from trainer.data.source import ImageSource

_log = logging.getLogger(__name__)
_NAMED = 10  # of bad images, in a message
_AT_A_TIME = 4096  # that wait for a thread
_ITS_OWN = (FileNotFoundError, PermissionError, IsADirectoryError)  # of an image, not of the storage


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
    """What becomes of bad images: fatal or skip, once all are looked at, or unchecked; `cache` keeps what was found."""

    rule: str
    cache: Path

    def of(self, source: ImageSource, classes: Sequence[str]) -> tuple[ImageSource, bytes]:
        """(the source of the images that are kept, what tells its contents from others': names and sizes).

        Raises:
          UserError: naming them, when bad images are fatal.
        """
        images = source.images
        assert isinstance(images, EncodedImages)
        content = images.reader.fingerprint()
        if self.rule == "unchecked":
            return source, content
        kept_in = self._kept_in(classes, content)
        bad = _bad(source, classes, kept_in)
        if not bad:
            return source, content
        named = ", ".join(f"{images.reader.name(place)} ({why})" for place, why in list(bad.items())[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        if self.rule == "fatal":
            raise UserError(
                f"{len(bad)} of {len(images)} images are bad: {named}{more}; mend or remove them, or leave them out with "
                f"bad_images=skip (all are listed in {kept_in}; remove it to have them looked at again)"
            )
        _log.warning(
            "%d of %d images are left out: %s%s (listed in %s)", len(bad), len(images), named, more, kept_in
        )
        places = tuple(place for place in range(len(images)) if place not in bad)
        kept = ImageSource(EncodedImages(Some(images.reader, places)), source.labels[list(places)])
        return kept, content + repr(sorted(bad)).encode()

    def _kept_in(self, classes: Sequence[str], content: bytes) -> Path:
        key = hashlib.sha256(content + repr(len(classes)).encode()).hexdigest()[:32]
        return self.cache / f"{key}.json"


def _bad(source: ImageSource, classes: Sequence[str], kept_in: Path) -> dict[int, str]:
    """Place → what is wrong with it."""
    if kept_in.is_file():
        return {int(place): why for place, why in json.loads(kept_in.read_text()).items()}
    found = _looked_at(source, len(classes))
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    draft = kept_in.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(found))
    draft.replace(kept_in)
    return found


def _looked_at(source: ImageSource, classes: int) -> dict[int, str]:
    """Place → what is wrong with it; no classes: labels are none of classes.

    Raises:
      UserError: when the storage fails, which says nothing of an image.
    """
    images, found = source.images, dict[int, str]()
    assert isinstance(images, EncodedImages)

    def problem(place: int) -> str | None:
        label = int(source.labels[place]) if classes else 0
        if classes and not 0 <= label < classes:
            return f"label {label}, there are {classes} classes"
        try:
            decoded(images.reader.read(place))
        except (ImageError, *_ITS_OWN) as error:
            return str(error)
        except OSError as error:
            raise UserError(
                f"{images.reader.name(place)} cannot be read now ({error}); try again when the storage answers"
            ) from error
        return None

    with ThreadPoolExecutor() as pool, progress(len(source), "images looked at") as bar:
        for start in range(0, len(source), _AT_A_TIME):
            places = range(start, min(start + _AT_A_TIME, len(source)))
            found |= {place: why for place, why in zip(places, pool.map(problem, places)) if why is not None}
            bar.advance(len(places))
    return found
