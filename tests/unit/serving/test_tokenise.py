"""Tokenisers: the two conventions of LiT's text towers, and one line for a vocabulary or an array that does not fit."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from serving.command import UserError
from serving.tokenise import TokeniserSpec, check_tokens, spec_of, tokenise
from tests.support.servers import ROOT

WORDS = ["[PAD]", "[CLS]", "some", "test", "words", "[UNK]", "##s", ",", "e", "##a", "fi"]
SENTENCES = [
    "a photo of a cat",
    "a photo of a dog",
    "the dog and the cat",
    "a drawing of a tree",
    "the photo of the tree",
    "cats and dogs and trees",
]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(WORDS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "pieces"),
        vocab_size=24,
        minloglevel=2,
    )
    return folder / "pieces.model"


def tokens(texts: list[str], vocab: Path, max_tokens: int) -> np.ndarray:
    return tokenise(texts, spec_of(vocab, max_tokens), vocab)


def test_wordpiece_puts_cls_first_pads_with_zeros_and_writes_no_end(words: Path) -> None:
    found = tokens(["some", "test words", "", "xxx"], words, 4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[1, 2, 0, 0], [1, 3, 4, 0], [1, 0, 0, 0], [1, 5, 0, 0]])


def test_wordpiece_cuts_what_is_too_long(words: Path) -> None:
    np.testing.assert_array_equal(tokens(["some test words, some"], words, 3), [[1, 2, 3]])


def test_wordpiece_splits_words_and_folds_case_accents_and_forms_of_letters(words: Path) -> None:
    found = tokens(["TESTS,some", "É", "éa", "\ufb01", "Eß"], words, 5)  # the fourth is the ligature of fi
    wanted = [[1, 3, 6, 7, 2], [1, 8, 0, 0, 0], [1, 8, 9, 0, 0], [1, 10, 0, 0, 0], [1, 8, 6, 6, 0]]
    np.testing.assert_array_equal(found, wanted)


def test_wordpiece_keeps_case_where_the_spec_says_so(words: Path) -> None:
    spec = spec_of(words, 3)
    kept = TokeniserSpec(**{**spec.to_json(), "lower_case": False})
    np.testing.assert_array_equal(tokenise(["Some", "some"], kept, words), [[1, 5, 0], [1, 2, 0]])


def test_a_vocabulary_written_on_windows_is_the_same(words: Path) -> None:
    words.write_bytes("\r\n".join(WORDS).encode() + b"\r\n")
    np.testing.assert_array_equal(tokens(["test words"], words, 4), [[1, 3, 4, 0]])


def test_sentencepiece_fills_up_with_the_end_and_ends_with_it_always(pieces: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    end = processor.eos_id()
    texts = ["a photo of a cat", "the dog", ""]
    for max_tokens in (2, 3, 5, 64):
        found = tokens(texts, pieces, max_tokens)
        assert found.dtype == np.int32
        for row, text in zip(found, texts, strict=True):
            ids = processor.encode(text)[: max_tokens - 1]
            assert row.tolist() == ids + [end] * (max_tokens - len(ids))


def test_sentencepiece_keeps_case_unless_the_spec_lowers_it(pieces: Path) -> None:
    spec = spec_of(pieces, 16)
    assert not spec.lower_case
    lowering = TokeniserSpec(**{**spec.to_json(), "lower_case": True})
    np.testing.assert_array_equal(
        tokenise(["THE CAT"], lowering, pieces), tokenise(["the cat"], spec, pieces)
    )
    assert (tokenise(["THE CAT"], spec, pieces) != tokenise(["the cat"], spec, pieces)).any()


def test_no_texts_are_no_rows(words: Path) -> None:
    assert tokens([], words, 7).shape == (0, 7)


def test_a_spec_says_which_file_was_meant(words: Path) -> None:
    spec = spec_of(words, 16)
    digest = hashlib.sha256(words.read_bytes()).hexdigest()
    assert spec == TokeniserSpec("wordpiece", 16, True, "vocab.txt", digest)
    assert TokeniserSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    words.write_text("\n".join([*WORDS[:2], "tree", *WORDS[3:]]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"is not the vocabulary vocab\.txt that was meant: its SHA-256 differs"
    ):
        tokenise(["some"], spec, words)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[PAD]\n[CLS]\nword", r"is no wordpiece vocabulary: it has no \[UNK\]"),
        ("[PAD]\n[UNK]\nword", r"it has no \[CLS\]"),
        ("[CLS]\n[UNK]\n[PAD]", r"\[PAD\] is its token 2 and not 0"),
        ("", r"it has no \[PAD\]"),
        (b"\xff\xfe\x00", "is no wordpiece vocabulary"),
    ],
    ids=str,
)
def test_a_list_of_words_that_is_no_vocabulary_is_refused_in_one_line(
    words: Path, content: str | bytes, named: str
) -> None:
    words.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=named) as refused:
        tokens(["some"], words, 4)
    assert "\n" not in str(refused.value)


def test_a_model_that_sentencepiece_cannot_read_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.model"
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken\.model is no sentencepiece vocabulary") as refused:
        tokens(["some"], file, 4)
    assert "\n" not in str(refused.value)


def test_a_model_without_an_end_of_texts_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(tmp_path / "endless"),
        vocab_size=24,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="it has no token that ends a text"):
        tokens(["some"], tmp_path / "endless.model", 4)


def test_a_file_of_another_name_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.json is no vocabulary by its name"):
        spec_of(tmp_path / "vocab.json", 16)
    with pytest.raises(UserError, match=r"the vocabulary .*none\.txt cannot be read"):
        spec_of(tmp_path / "none.txt", 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "bytes"},
        {"max_tokens": 1},
        {"vocab_file": "folder/vocab.txt"},
        {"vocab_file": ""},
        {"vocab_sha256": "abc"},
    ],
    ids=str,
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    sound: dict[str, Any] = TokeniserSpec("wordpiece", 16, True, "vocab.txt", "0" * 64).to_json()
    with pytest.raises(ValueError, match="TokeniserSpec"):
        TokeniserSpec.from_json({**sound, **changes})


def test_tokens_that_a_tower_can_read_pass() -> None:
    check_tokens(np.array([[0, 9], [5, 1]]), 10, 2)
    check_tokens(np.zeros((0, 2), np.int64), 10, 4)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([[0, 1], [2, 10]]), r"^text 1 has the token 10 at place 1, .* goes from 0 to 9; tokenise"),
        (np.array([[-1, 1]]), "^text 0 has the token -1 at place 0"),
        (np.zeros((2, 4), np.int32), "^texts have 4 tokens, the text tower takes 1 to 3; cut"),
        (np.zeros((2, 0), np.int32), "^texts have 0 tokens"),
        (np.zeros(3, np.int32), r"^tokens are int32 \[3\]; give integers of shape \[texts, tokens\]$"),
        (np.zeros((1, 3), np.float32), r"^tokens are float32 \[1, 3\]"),
    ],
    ids=str,
)
def test_tokens_beyond_the_tower_are_refused_in_one_line(array: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        check_tokens(array, 10, 3)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "library"), [("words", "tokenizers"), ("pieces", "sentencepiece")])
def test_only_the_library_of_the_kind_is_imported_and_its_lack_is_one_line(
    kind: str, library: str, request: pytest.FixtureRequest
) -> None:
    vocab: Path = request.getfixturevalue(kind)
    code = (
        "import sys; from pathlib import Path; from serving.tokenise import spec_of, tokenise\n"
        "assert not {'tokenizers', 'sentencepiece'} & set(sys.modules)\n"
        "vocab = Path(sys.argv[1]); spec = spec_of(vocab, 8)\n"
        "if len(sys.argv) > 2: sys.modules[sys.argv[2]] = None\n"
        "try: tokenise(['a'], spec, vocab)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "else: print(*sorted({'tokenizers', 'sentencepiece'} & set(sys.modules)))\n"
    )
    for arguments, said in (
        ([], library),
        ([library], f"UserError {library} is not installed; install vitforge[train]"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", code, str(vocab), *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert (ended.stdout.strip(), ended.returncode) == (said, 0), ended.stderr
