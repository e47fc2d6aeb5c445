"""`pairs:FILE.jsonl`: images with texts, one JSON object a line: {"image": "cat.jpg", "text": "a cat"}.

Paths are relative to the file, of which a tenth is validation and a tenth test. `pairs:GLOB.array_record` are shards that
`python -m tools.convert` made of such a file. The labels of such a data set are the tokens of its texts.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from serving.command import UserError
from serving.tokenise import TokeniserSpec, tokenise
from trainer.data import shards
from trainer.data.bad_images import Sound
from trainer.data.encoded import EncodedImages, Reader
from trainer.data.folder import Files
from trainer.data.source import Dataset, ImageSource

KIND = "pairs:"
_LINE = '{"image": "cat.jpg", "text": "a cat"}'


@dataclasses.dataclass(frozen=True)
class Pairs:
    """One split: images, a text of each, and what tells the images from others."""

    images: EncodedImages
    texts: tuple[str, ...]
    content: bytes


def load(name: str, tokens: TokeniserSpec, vocab: Path, sound: Sound) -> Dataset:
    """The pairs of the data set `name`, their texts as `tokens` has them by the vocabulary in the file `vocab`.

    Raises:
      UserError: as `read` does, and for a vocabulary that cannot be read.
    """
    splits, digest = [], hashlib.sha256(f"{tokens.to_json()}".encode())
    for pairs in read(name, sound).values():
        source = ImageSource(pairs.images, tokenise(list(pairs.texts), tokens, vocab))
        digest.update(pairs.content)
        digest.update(np.ascontiguousarray(source.labels, "<i4").tobytes())
        splits.append(source)
    train, validation, test = splits
    return Dataset(name, train, validation, test, (), digest.hexdigest())


def read(name: str, sound: Sound) -> dict[str, Pairs]:
    """Split → the pairs of the data set `name` ("pairs:FILE.jsonl", "pairs:GLOB.array_record") that `sound` keeps.

    Raises:
      UserError: naming the line that is no pair, or the shards that are none of pairs.
    """
    path = name.removeprefix(KIND)
    found = shards.read_texts(path) if path.endswith(shards.ENDING) else _in_splits(Path(path).expanduser())
    return {split: _kept(reader, texts, sound) for split, (reader, texts) in found.items()}


def _kept(reader: Reader, texts: tuple[str, ...], sound: Sound) -> Pairs:
    # Each image's label is the place of its text.
    kept, content = sound.of(ImageSource(EncodedImages(reader), np.arange(len(texts), dtype=np.int32)), ())
    assert isinstance(kept.images, EncodedImages)
    return Pairs(kept.images, tuple(texts[place] for place in kept.labels.tolist()), content)


def _in_splits(path: Path) -> dict[str, tuple[Reader, tuple[str, ...]]]:
    images, texts = _read(path)
    order = np.random.RandomState(0).permutation(len(texts))
    tenth = len(texts) // 10
    if not tenth:
        raise UserError(
            f"{path} has {len(texts)} pairs; it needs 10 at least, of which a tenth each is for validation and test"
        )
    places = (order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth])
    return {
        split: (
            Files(str(path.parent), tuple(images[place] for place in chosen)),
            tuple(texts[place] for place in chosen),
        )
        for split, chosen in zip(shards.SPLITS, places, strict=True)
    }


def _read(path: Path) -> tuple[list[str], list[str]]:
    """(paths of images, texts)."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); it holds one pair a line: {_LINE}") from error
    images, texts = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, text = _pair(path, number, line)
        images.append(image)
        texts.append(text)
    return images, texts


def _pair(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
        image, text = value["image"], value["text"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}, line {number} is no pair: {line[:60]!r}; lines look like {_LINE}"
        ) from error
    if not isinstance(image, str) or not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{path}, line {number}: image and text must be texts that say something; lines look like {_LINE}"
        )
    return image, text
