"""From texts to a text tower's input, as data says it: one small interpreter for training, evaluation, export and clients alike.

The libraries that know the vocabularies (tokenizers, sentencepiece) are imported where a text is first met, for its kind alone.
"""

import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serving.command import UserError

Array = np.ndarray[Any, np.dtype[Any]]
Ids = list[list[int]]
_KINDS = {".txt": "wordpiece", ".model": "sentencepiece"}


@dataclasses.dataclass(frozen=True)
class TokeniserSpec:
    """How a text becomes tokens.

    `wordpiece`, as BERT's: [CLS], then the text's tokens, then 0 up to `max_tokens`; no [SEP]. The file holds a token a line.
    `sentencepiece`: the text's tokens, then </s> up to `max_tokens`; the last is </s> always. The file is SentencePiece's own.
    What is too long is cut.
    `lower_case` folds a text first, as LiT's text towers were trained: the case, and for `wordpiece` the forms of a letter and its
    accents too (NFKC; "ﬁ" is "fi", "É" is "e").
    `vocab_file` is a name without folder, `vocab_sha256` the file's, in hexadecimal.
    """

    kind: Literal["wordpiece", "sentencepiece"]
    max_tokens: int
    lower_case: bool
    vocab_file: str
    vocab_sha256: str

    def __post_init__(self) -> None:
        if self.kind not in _KINDS.values() or self.max_tokens < 2:
            kinds = " or ".join(_KINDS.values())
            raise ValueError(f"{self}: kind is {kinds}, max_tokens at least 2")
        if (
            Path(self.vocab_file).name != self.vocab_file
            or not self.vocab_file
            or len(self.vocab_sha256) != 64
        ):
            raise ValueError(
                f"{self}: vocab_file is the name of a file, vocab_sha256 has 64 hexadecimal digits"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "TokeniserSpec":
        """The spec that `to_json` wrote."""
        return TokeniserSpec(**value)


def spec_of(vocab: Path, max_tokens: int) -> TokeniserSpec:
    """The spec of a vocabulary by its file: BERT's uncased `.txt`, or a `.model` of SentencePiece.

    Raises:
      UserError: when the file cannot be read or has another ending.
    """
    if vocab.suffix not in _KINDS:
        raise UserError(f"{vocab} is no vocabulary by its name; give BERT's .txt or SentencePiece's .model")
    kind: Any = _KINDS[vocab.suffix]
    digest = hashlib.sha256(_read(vocab)).hexdigest()
    return TokeniserSpec(kind, max_tokens, kind == "wordpiece", vocab.name, digest)


def tokenise(texts: Sequence[str], spec: TokeniserSpec, vocab: Path) -> Array:
    """int32 (B, spec.max_tokens): the tokens of `texts`, by the vocabulary in the file `vocab`, which is read once.

    Raises:
      UserError: when the file is not the one that `spec` names, is no vocabulary of its kind, or the library for it is missing.
    """
    encode, before, after = _opened(spec, vocab)
    tokens = np.full((len(texts), spec.max_tokens), after, np.int32)
    room = spec.max_tokens - 1  # the first or the last token is not the text's
    for row, ids in zip(tokens, encode([_folded(text, spec) for text in texts]), strict=True):
        kept = [*before, *ids[:room]]
        row[: len(kept)] = kept
    return tokens


def _folded(text: str, spec: TokeniserSpec) -> str:
    if not spec.lower_case:
        return text
    if spec.kind == "sentencepiece":
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def check_tokens(tokens: Array, vocab_size: int, num_positions: int) -> None:
    """Refuses an array that a text tower cannot read.

    Args:
      tokens: integers (B, T).
      vocab_size: V, tokens are 0 to V - 1.
      num_positions: the largest T.

    Raises:
      UserError: naming the first token that does not fit, or the shape.
    """
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"tokens are {tokens.dtype} {list(tokens.shape)}; give integers of shape [texts, tokens]"
        )
    if not 1 <= tokens.shape[1] <= num_positions:
        raise UserError(
            f"texts have {tokens.shape[1]} tokens, the text tower takes 1 to {num_positions}; cut or tokenise them anew"
        )
    outside = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        text, place = outside[0]
        raise UserError(
            f"text {text} has the token {tokens[text, place]} at place {place}, the text tower's vocabulary goes from 0 to "
            f"{vocab_size - 1}; tokenise with the vocabulary that the tower was trained with"
        )


@functools.lru_cache(maxsize=4)
def _opened(spec: TokeniserSpec, vocab: Path) -> tuple[Callable[[Sequence[str]], Ids], list[int], int]:
    """What makes ids of texts; what stands before them; what fills the rest."""
    content = _read(vocab)
    if hashlib.sha256(content).hexdigest() != spec.vocab_sha256:
        raise UserError(
            f"{vocab} is not the vocabulary {spec.vocab_file} that was meant: its SHA-256 differs; give that one"
        )
    try:
        return _wordpiece(content, spec) if spec.kind == "wordpiece" else _sentencepiece(content)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; install vitforge[train]") from error
    except ValueError as error:
        raise UserError(
            f"{vocab} is no {spec.kind} vocabulary: {error}; give the one of the text tower"
        ) from error


def _read(vocab: Path) -> bytes:
    try:
        return vocab.read_bytes()
    except OSError as error:
        raise UserError(
            f"the vocabulary {vocab} cannot be read ({error}); give BERT's .txt or SentencePiece's .model"
        ) from error


def _wordpiece(content: bytes, spec: TokeniserSpec) -> tuple[Callable[[Sequence[str]], Ids], list[int], int]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    lines = content.decode("utf-8").rstrip("\n").split("\n")
    ids = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    missing = [token for token in ("[PAD]", "[CLS]", "[UNK]") if token not in ids]
    if missing or ids["[PAD]"] != 0:
        raise ValueError(
            f"it has no {missing[0]}" if missing else f"[PAD] is its token {ids['[PAD]']} and not 0"
        )
    tokeniser = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokeniser.normalizer = normalizers.BertNormalizer(lowercase=spec.lower_case)
    tokeniser.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(texts: Sequence[str]) -> Ids:
        return [encoded.ids for encoded in tokeniser.encode_batch(list(texts), add_special_tokens=False)]

    return encode, [ids["[CLS]"]], 0


def _sentencepiece(content: bytes) -> tuple[Callable[[Sequence[str]], Ids], list[int], int]:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ValueError("SentencePiece cannot read it") from error
    if processor.eos_id() < 0:
        raise ValueError("it has no token that ends a text (</s>)")

    def encode(texts: Sequence[str]) -> Ids:
        ids: Ids = processor.encode(list(texts), out_type=int)
        return ids

    return encode, [], processor.eos_id()
