"""Bundles of towers: what they may say of tokens, tokenisers and embeddings, and what cannot be true of one model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos import bundle_pb2
from serving.bundle import BundleError, read_bundle, spec_to_proto, tokeniser_to_proto, write_bundle
from serving.manifest import classifies, takes_images
from serving.tokenise import tokenise
from tests.support import bundles, towers

Manifest = bundle_pb2.Manifest


def test_a_text_tower_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = read_bundle(towers.write_text_tower(tmp_path).path)
    assert read.preprocess is None
    assert read.tokeniser == towers.TOKENISER
    assert read.manifest.logit_scale == towers.SCALE
    assert not takes_images(read.manifest)
    assert not classifies(read.manifest)
    np.testing.assert_array_equal(read.golden_inputs["tokens"], towers.tokens(2, seed=9), strict=True)


def test_the_vocabulary_of_a_bundle_tokenises_what_its_tower_takes(tmp_path: Path) -> None:
    bundle = towers.write_text_tower(tmp_path)
    assert bundle.tokeniser is not None
    found = tokenise(["A photo of a cat"], bundle.tokeniser, bundle.path / bundle.tokeniser.vocab_file)
    words = [towers.VOCAB[index] for index in found[0]]
    assert words == ["[CLS]", "a", "photo", "of", "a", "cat"]


def test_an_image_tower_takes_images_and_classifies_nothing(tmp_path: Path) -> None:
    read = read_bundle(towers.write_image_tower(tmp_path).path)
    assert read.preprocess == bundles.SPEC
    assert read.tokeniser is None
    assert (takes_images(read.manifest), classifies(read.manifest)) == (True, False)


def test_a_classifier_classifies_and_has_no_tokeniser(tmp_path: Path) -> None:
    read = read_bundle(bundles.write_tiny(tmp_path).path)
    assert read.tokeniser is None
    assert read.manifest.logit_scale == 0
    assert (takes_images(read.manifest), classifies(read.manifest)) == (True, True)


def test_a_text_tower_needs_no_tokeniser(tmp_path: Path) -> None:
    manifest = towers.text_manifest()
    manifest.ClearField("tokeniser")
    assert write(tmp_path, manifest).tokeniser is None


def write(tmp_path: Path, manifest: Manifest, golden: np.ndarray | None = None, **files: bytes) -> Any:
    texts = towers.tokens(2) if golden is None else golden
    contents = {"model.onnx": towers.text_model(), **files}
    outputs = {"embeddings": np.zeros((2, towers.WIDTH), np.float32)}
    return write_bundle(tmp_path / "text" / "1", manifest, contents, {"tokens": texts}, outputs)


SENSELESS: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "images too": (
        lambda manifest: manifest.preprocessing.CopyFrom(spec_to_proto(bundles.SPEC)),
        "preprocessing of images for a model that takes tokens",
    ),
    "a picture of tokens": (
        lambda manifest: manifest.inputs[0].shape.append(3),
        r"input 'tokens' is INT32 \[-1, 6, 3\], tokens are \[-1, T\]",
    ),
    "wide tokens": (
        lambda manifest: setattr(manifest.inputs[0], "datatype", "INT64"),
        r"input 'tokens' is INT64 \[-1, 6\], it must be FP32 or INT32",
    ),
    "whole embeddings": (
        lambda manifest: setattr(manifest.outputs[0], "datatype", "INT32"),
        r"output 'embeddings' is INT32 \[-1, 5\], it must be FP32 \[",
    ),
    "fewer than no values": (
        lambda manifest: setattr(manifest.inputs[0], "values_below", -1),
        "input 'tokens' is",
    ),
    "labels": (
        lambda manifest: manifest.labels.extend("abcde"),
        "5 labels for embeddings, which have no classes",
    ),
    "another length": (
        lambda manifest: setattr(manifest.tokeniser, "max_tokens", 7),
        "the model takes 6 tokens, its tokeniser makes 7",
    ),
    "an unknown kind": (
        lambda manifest: setattr(manifest.tokeniser, "kind", "bytes"),
        "kind is wordpiece or",
    ),
    "an absent vocabulary": (
        lambda manifest: setattr(manifest.tokeniser, "vocab_file", "other.txt"),
        r"its tokeniser cannot be used \(is its vocabulary a file of the bundle\?\)",
    ),
    "a NaN scale": (lambda manifest: setattr(manifest, "logit_scale", float("nan")), "the logit scale nan"),
    "an endless scale": (lambda manifest: setattr(manifest, "logit_scale", float("inf")), "logit scale inf"),
    "a negative scale": (lambda manifest: setattr(manifest, "logit_scale", -1.0), "the logit scale -1.0"),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_a_text_tower_that_nobody_could_serve_is_refused_by_name(tmp_path: Path, case: str) -> None:
    change, named = SENSELESS[case]
    manifest = towers.text_manifest()
    change(manifest)
    with pytest.raises(BundleError, match=named) as refused:
        write(tmp_path, manifest, **{"vocab.txt": b"a\nb"})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "text" / "1").exists()


@pytest.mark.parametrize(
    ("golden", "named"),
    [
        (
            np.zeros((2, 6), np.int64),
            r"inputs/tokens in golden\.npz is int64 \[2, 6\], the signature says int32",
        ),
        (np.zeros((2, 6), np.float32), "is float32"),
        (np.full((2, 6), 8, np.int32), r"has values from 8 to 8, the signature says 0 to 7"),
        (np.full((2, 6), -1, np.int32), r"has values from -1 to -1"),
    ],
    ids=str,
)
def test_golden_tokens_are_of_the_type_and_range_of_the_signature(
    tmp_path: Path, golden: np.ndarray, named: str
) -> None:
    with pytest.raises(BundleError, match=named):
        write(tmp_path, towers.text_manifest(), golden, **{"vocab.txt": b"a\nb"})


def test_a_tokeniser_for_images_is_refused(tmp_path: Path) -> None:
    manifest = bundles.write_tiny(tmp_path).manifest
    manifest.tokeniser.CopyFrom(tokeniser_to_proto(dataclasses.replace(towers.TOKENISER)))
    golden = {"images": bundles.images(2)}
    with pytest.raises(BundleError, match="a tokeniser for a model that takes images"):
        write_bundle(
            tmp_path / "tiny" / "2",
            manifest,
            {"model.onnx": b"", "model.int8.onnx": b""},
            golden,
            {"logits": bundles.logits(golden["images"])},
        )
