"""`pairs:FILE.jsonl`: images with texts, one JSON object a line: {"image": "cat.jpg", "text": "a cat"}.

Paths are relative to the file, of which a tenth is validation and a tenth test. The labels of such a data set are the tokens of its
texts.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from serving.command import UserError
from serving.tokenise import TokeniserSpec, tokenise
from trainer.data.bad_images import Sound
from trainer.data.encoded import EncodedImages
from trainer.data.folder import Files
from trainer.data.source import Dataset, ImageSource

KIND = "pairs:"
_LINE = '{"image": "cat.jpg", "text": "a cat"}'


def load(name: str, tokens: TokeniserSpec, vocab: Path, sound: Sound) -> Dataset:
    """The pairs of the data set `name` ("pairs:FILE"), their texts as `tokens` has them by the vocabulary in the file `vocab`.

    Raises:
      UserError: naming the line that is no pair, or the vocabulary that cannot be read.
    """
    path = Path(name.removeprefix(KIND)).expanduser()
    images, texts = _read(path)
    labels = tokenise(texts, tokens, vocab)
    order = np.random.RandomState(0).permutation(len(texts))
    tenth = len(texts) // 10
    if not tenth:
        raise UserError(
            f"{path} has {len(texts)} pairs; it needs 10 at least, of which a tenth each is for validation and test"
        )
    splits, digest = [], hashlib.sha256(f"{tokens.to_json()}".encode())
    for places in (order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth]):
        files = Files(str(path.parent), tuple(images[place] for place in places))
        kept, content = sound.of(ImageSource(EncodedImages(files), labels[places]), ())
        digest.update(content)
        digest.update(np.ascontiguousarray(kept.labels, "<i4").tobytes())
        splits.append(kept)
    train, validation, test = splits
    return Dataset(name, train, validation, test, (), digest.hexdigest())


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
